from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path

import pytest

import stores
from manifests.recordings import slugs
from model.signal import ActivityOptions
from pipelines.config import IN_PROCESS, SeparateConfig, separate_config
from pipelines.flags import SEPARATE, UsageError
from pipelines.runners import DASK, execution_of, parse


def _config(*arguments: str) -> SeparateConfig:
    return _config_of("--output", "o", *arguments)


def _config_of(*arguments: str) -> SeparateConfig:
    given = parse(SEPARATE, list(arguments))
    return separate_config(given, execution_of(given))


def test_paths_become_absolute_and_uris_stay(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    config = _config("--manifest", "a.csv", "gs://b/c.csv")
    assert config.manifests == (str(tmp_path / "a.csv"), "gs://b/c.csv")
    assert config.output == str(tmp_path / "o")


def test_a_folder_whose_name_is_no_text_is_said_where_a_path_begins_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = os.fsencode(tmp_path) + b"/m\xfcsik"
    os.mkdir(folder)
    monkeypatch.chdir(os.fsdecode(folder))
    with pytest.raises(UsageError, match=r"^--manifest: .*a.csv': has bytes that are no text in"):
        _config_of("--manifest", "a.csv", "--output", "/o")


def test_one_recording_becomes_a_row(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    config = _config("--mixture", "talks/a.b.wav", "--positive", "x", "--negative_audio", "n.wav")
    (row,) = config.rows
    assert (row.id, row.mixture_uri) == ("a.b", str(tmp_path / "talks" / "a.b.wav"))
    assert row.negative_audio_uris == (str(tmp_path / "n.wav"),)
    assert config.manifests == ()


def _of_one(*arguments: str) -> SeparateConfig:
    return _config("--mixture", "talks/talk.wav", *arguments)


def _queries(config: SeparateConfig) -> list[tuple[str, str | None, str | None]]:
    return [(row.id, row.positive_text, row.negative_text) for row in config.rows]


def test_a_table_of_queries_behind_a_chain_is_read_with_the_options_of_its_store() -> None:
    uri = f"{stores.vault()}q.csv"
    stores.Vault("open").pipe_file(uri, b"name,positive_text\nbell,a bell\n")
    options = json.dumps({"vault": {"key": "open"}})
    for queries in (uri, f"simplecache::{uri}"):
        config = _of_one("--queries", queries, "--storage_options", options)
        assert _queries(config) == [("talk", "a bell", None)]


def test_manifests_add_up() -> None:
    config = _config("--manifest", "/a.csv", "/b.csv", "--manifest", "/c.csv", "--manifest=/d.csv")
    assert config.manifests == ("/a.csv", "/b.csv", "/c.csv", "/d.csv")


def test_prefixes_add_up() -> None:
    prefixes = ("--allowed_uri_prefix", "gs://b/x", "--allowed_uri_prefix=gs://c")
    assert _config("--manifest", "a.csv", *prefixes).allowed_uri_prefix == ("gs://b/x", "gs://c")


def test_several_queries_of_one_recording_are_a_row_each() -> None:
    both = _of_one("--positive", "A dog, barking", "--positive", "Café 2", "--negative", "rain")
    assert _queries(both) == [
        ("talk/a_dog_barking", "A dog, barking", "rain"),
        ("talk/cafe_2", "Café 2", "rain"),
    ]
    assert len({row.mixture_uri for row in both.rows}) == 1
    alone = _of_one("--positive", "A dog, barking")
    assert _queries(alone) == [("talk", "A dog, barking", None)]


def test_example_clips_go_with_every_query() -> None:
    config = _of_one("--positive", "a", "--positive", "b", "--positive_audio", "/x.wav", "/y.wav",
                     "--text_weight", "0.25")  # fmt: skip
    for row in config.rows:
        assert (row.positive_audio_uris, row.text_weight) == (("/x.wav", "/y.wav"), 0.25)


def test_the_other_queries_can_be_what_is_suppressed() -> None:
    three = ("--positive", "dog", "--positive", "cat", "--positive", "rain")
    assert _queries(_of_one(*three, "--negative", "others")) == [
        ("talk/dog", "dog", "cat and rain"),
        ("talk/cat", "cat", "dog and rain"),
        ("talk/rain", "rain", "dog and cat"),
    ]
    with pytest.raises(UsageError, match=r"--negative others stands for .* has no others"):
        _of_one("--positive", "dog", "--negative", "others")
    with pytest.raises(UsageError, match="has no others"):
        _of_one("--positive_audio", "x.wav", "--negative", "Others ")


def test_texts_that_look_alike_are_told_apart_whatever_their_order() -> None:
    texts = ["a dog!", "A Dog", "狗", "猫", "x" * 200, "x" * 201, "dog"]
    found = dict(zip(texts, slugs(texts), strict=True))
    assert len(set(found.values())) == len(texts)
    assert found["dog"] == "dog"
    assert dict(zip(reversed(texts), slugs(texts[::-1]), strict=True)) == found
    for slug in found.values():
        assert re.fullmatch(r"[a-z0-9_]{1,100}", slug)
    assert found["a dog!"].startswith("a_dog_")
    assert found["狗"].startswith("query_")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--positive", "dog", "--positive", "dog "), "'dog' is given twice"),
        (("--positive", "dog", "--positive", " "), "--positive: found an empty text"),
        (("--positive", "a", "--positive", "b", "--reference", "r.wav"), "--reference goes with"),
    ],
)
def test_queries_that_cannot_be_told_apart_are_refused(
    arguments: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        _of_one(*arguments)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("http://h/a/talk.wav?signature=1/2.x", "talk"),
        ("s3://b/what?.wav", "what?"),
        ("dir/", "dir"),
        (".wav", ".wav"),
    ],
)
def test_a_recording_is_called_what_its_file_is(uri: str, expected: str) -> None:
    (row,) = _config("--mixture", uri, "--positive", "x").rows
    assert row.id == expected


def test_a_local_run_stays_in_this_process_unless_workers_are_wanted() -> None:
    alone = _config("--manifest", "a.csv").execution
    assert alone.in_process
    assert (alone.runner, alone.num_workers) == (IN_PROCESS, 1)
    assert alone.num_threads == len(os.sched_getaffinity(0))
    two = _config("--manifest", "a.csv", "--num_workers", "2").execution
    assert (two.runner, two.num_workers, two.in_process) == (IN_PROCESS, 2, False)
    direct = _config("--manifest", "a.csv", "--runner", "DirectRunner").execution
    assert direct.runner == IN_PROCESS


def test_a_remote_runner_keeps_its_own_workers() -> None:
    dataflow = _config("--manifest", "a", "--runner", "DataflowRunner", "--num_workers", "9")
    assert (dataflow.execution.runner, dataflow.execution.num_workers) == ("DataflowRunner", 1)
    assert not dataflow.execution.in_process


@pytest.mark.parametrize("runner", ["DaskRunner", "PrismRunner", "BundleBasedDirectRunner"])
def test_runners_that_lose_data_are_refused_with_the_reason(runner: str) -> None:
    with pytest.raises(UsageError, match=f"--runner={runner} is refused: .{{10}}"):
        _config("--manifest", "a.csv", "--runner", runner)


def test_a_dask_cluster_is_named_by_its_scheduler() -> None:
    where = ("--manifest", "a.csv", "--runner=dask")
    execution = _config(*where, "--dask_client_address", "tcp://10.0.0.5:8786").execution
    assert (execution.runner, execution.cluster) == (DASK, "tcp://10.0.0.5:8786")
    assert (execution.in_process, execution.is_local, execution.num_threads) == (False, False, 1)
    with pytest.raises(UsageError, match="needs --dask_client_address"):
        _config(*where)
    with pytest.raises(UsageError, match="goes with --runner=dask"):
        _config("--manifest", "a.csv", "--dask_client_address", "tcp://10.0.0.5:8786")


def test_what_a_dask_worker_does_at_once_is_its_threads() -> None:
    where = ("--manifest", "a", "--runner=dask", "--dask_client_address", "tcp://10.0.0.5:8786")
    with pytest.raises(UsageError, match=r"--max_active_bundles_per_worker=2: .* with --nthreads"):
        _config(*where, "--max_active_bundles_per_worker", "2")


@pytest.mark.parametrize("flag", ["--dry_run=True", "--template_location=gs://b/t"])
def test_a_job_that_is_not_to_be_run_is_not(flag: str) -> None:
    with pytest.raises(UsageError, match=f"{flag} goes with --runner=DataflowRunner"):
        _config("--manifest", "a", flag)
    _config("--manifest", "a", flag, "--runner", "DataflowRunner")


def test_a_dry_run_is_asked_for_by_the_word_that_says_so() -> None:
    with pytest.raises(UsageError, match=r"--dry_run=False: .* leave the flag out"):
        _config("--manifest", "a", "--runner", "DataflowRunner", "--dry_run=False")


def test_threads_of_beam_that_lose_data_are_refused() -> None:
    with pytest.raises(UsageError, match="loses elements"):
        _config("--manifest", "a", "--direct_running_mode", "multi_threading")


def test_hints_are_those_that_were_given() -> None:
    config = _config("--manifest", "a", "--accelerator", "type:nvidia-l4;count:1")
    assert config.execution.resource_hints == {"accelerator": "type:nvidia-l4;count:1"}
    config = _config("--manifest", "a", "--cpu_count", "8", "--max_active_bundles_per_worker", "4")
    assert config.execution.resource_hints == {
        "cpu_count": "8", "max_active_bundles_per_worker": "4"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--overlap", "1.0"), r"\[0, 1\)"),
        (("--max_failure_rate", "1.5"), r"\[0, 1\]"),
        (("--batch_size", "0"), "at least 1"),
        (("--shards", "-1"), "at least 0"),
        (("--num_workers", "0"), "at least 1"),
        (("--max_clip_in_memory_s", "0"), "above 0"),
        (("--max_clip_in_memory_s", "nan"), "above 0"),
        (("--resume", "--overwrite"), "exclude each other"),
        (("--storage_options", "[]"), "protocol"),
        (("--text_weight", "0.5"), "goes with --mixture"),
    ],
)
def test_values_out_of_range_are_refused_by_name(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        _config("--manifest", "a.csv", *arguments)


def test_settings_are_what_decides_the_results() -> None:
    config = _config("--manifest", "a.csv")
    before = config.settings()
    changes = {
        "overlap": 0.5, "model": "m", "scorer": "none", "precision": "bf16", "residual": True,
        "channels": "mid", "condition_norm": "unnormalised", "stem_format": "wav",
        "on_unsupported_query": "nearest", "segment_scores": True, "clap_scores": "stem",
        "activity": ActivityOptions(min_gap_s=2.0), "keep_stems": "none", "min_presence": 0.1,
        "stem_quality": 0.5, "embeddings": True, "screen": 0.5,
    }  # fmt: skip
    assert before.keys() == changes.keys()
    for name, value in changes.items():
        assert dataclasses.replace(config, **{name: value}).settings() != before
    assert dataclasses.replace(config, batch_size=1, shards=3).settings() == before


def test_the_record_holds_no_secrets() -> None:
    secret = "hunter2"
    options = json.dumps({"s3": {"secret": secret}})
    recorded = json.dumps(_config("--manifest", "a", "--storage_options", options).to_json())
    assert secret not in recorded
    assert "s3" in recorded


def test_a_home_is_resolved_in_every_flag_that_names_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    arguments = ["--manifest=~/m.csv", "--output=~/out/", "--model=~/w.safetensors"]
    config = _config_of(*arguments, "--allowed_uri_prefix=~/clips")
    assert config.manifests == (f"{tmp_path}/m.csv",)
    assert (config.output, config.model) == (f"{tmp_path}/out", f"{tmp_path}/w.safetensors")
    assert (config.allowed_uri_prefix, config.scorer) == ((f"{tmp_path}/clips",), "own")
    (row,) = _config("--mixture=~/a.wav", "--reference=~/r.wav", "--positive_audio=~/p.wav").rows
    assert (row.id, row.mixture_uri, row.reference_uri, row.positive_audio_uris) == (
        "a", f"{tmp_path}/a.wav", f"{tmp_path}/r.wav", (f"{tmp_path}/p.wav",),
    )  # fmt: skip


def test_a_file_uri_in_a_flag_is_its_path(tmp_path: Path) -> None:
    folder = tmp_path / "my clips"
    uri = folder.as_uri()
    config = _config_of("--mixture", f"{uri}/a%20b.wav", "--positive", "x", "--output", uri)
    assert (config.output, config.rows[0].id) == (str(folder), "a b")
    assert config.rows[0].mixture_uri == f"{folder}/a b.wav"
    with pytest.raises(UsageError, match="--output: file://server/x: file:// names the machine"):
        _config_of("--mixture", "a.wav", "--positive", "x", "--output", "file://server/x")


@pytest.mark.parametrize(
    ("runner", "expected"),
    [
        ("dataflow", "DataflowRunner"),
        ("DATAFLOWRUNNER", "DataflowRunner"),
        ("apache_beam.runners.dataflow.dataflow_runner.DataflowRunner", "DataflowRunner"),
        ("direct", IN_PROCESS),
        ("directrunner", IN_PROCESS),
        ("", IN_PROCESS),
    ],
)
def test_runners_are_known_by_every_name_that_beam_takes(runner: str, expected: str) -> None:
    assert _config("--manifest", "a.csv", f"--runner={runner}").execution.runner == expected


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--runner=dataflo"], "--runner=dataflo: no such runner is known; is it DataflowRunner?"),
        (["--runner=no.such.Runner"], "--runner=no.such.Runner: cannot be had: No module named"),
        (["--runner=prism"], "--runner=PrismRunner is refused"),
        (["--min_ram=lots"], "--min_ram lots: expected a size such as 16GB"),
        (["--min_ram=-1"], "--min_ram -1: expected"),
        (["--manifest="], "--manifest: found an empty value"),
        (["--allowed_uri_prefix="], "--allowed_uri_prefix: found an empty value"),
    ],
)
def test_engines_and_values_that_nothing_has_are_refused(flags: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        _config("--manifest", "a.csv", *flags)


@pytest.mark.parametrize("flag", ["reference", "positive_audio", "negative_audio", "negative"])
@pytest.mark.parametrize("blank", ["", " "])
def test_empty_values_of_one_recording_are_refused(flag: str, blank: str) -> None:
    with pytest.raises(UsageError, match=f"--{flag}: found an empty"):
        _of_one("--positive", "dog", f"--{flag}={blank}")


@pytest.mark.parametrize("output", ["s3://", "gs:///", "memory://", "file:///"])
def test_an_output_without_a_bucket_is_refused(output: str) -> None:
    with pytest.raises(UsageError, match="expected a bucket or a folder after ://"):
        _config_of("--mixture", "a.wav", "--positive", "x", "--output", output)
