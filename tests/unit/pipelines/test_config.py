from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

from pipelines.command_line import parse, separate_parser
from pipelines.config import SeparateConfig, separate_config
from pipelines.engines import DASK, IN_PROCESS
from pipelines.options import UsageError


def _config(*arguments: str) -> SeparateConfig:
    return separate_config(parse(separate_parser(), ["--output", "o", *arguments]))


def test_paths_become_absolute_and_uris_stay(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    config = _config("--manifest", "a.csv", "gs://b/c.csv")
    assert config.manifests == (str(tmp_path / "a.csv"), "gs://b/c.csv")
    assert config.output == str(tmp_path / "o")


def test_one_recording_becomes_a_row(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    config = _config("--mixture", "talks/a.b.wav", "--positive", "x", "--negative_audio", "n.wav")
    (row,) = config.rows
    assert (row.id, row.mixture_uri) == ("a.b", str(tmp_path / "talks" / "a.b.wav"))
    assert row.negative_audio_uris == (str(tmp_path / "n.wav"),)
    assert config.manifests == ()


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


def test_threads_of_beam_that_lose_data_are_refused() -> None:
    with pytest.raises(UsageError, match="loses elements"):
        _config("--manifest", "a", "--direct_running_mode", "multi_threading")


def test_hints_are_those_that_were_given() -> None:
    config = _config("--manifest", "a", "--accelerator", "type:nvidia-l4;count:1")
    assert config.execution.resource_hints == {"accelerator": "type:nvidia-l4;count:1"}


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
        "on_unsupported_query": "nearest",
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
