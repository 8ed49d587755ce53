"""The shape of the main job's graph: what is shuffled, where stages end, what stays bounded."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.coders.typecoders import registry
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.testing.util import assert_that

import tone_runs
from manifests.files import readers
from manifests.row import ManifestRow
from model.systems import Capabilities
from pipelines.config import separate_config
from pipelines.flags import SEPARATE
from pipelines.output_folder import Earlier, OutputFolder, storage_of
from pipelines.runners import execution_of, parse
from pipelines.separate_graph import Models, SeparateJob
from transforms import model_cache
from transforms.elements import KeptRow, MixtureRows
from transforms.manifest_io import GroupByMixture, pieces_of, spread_key
from transforms.queries import EmbedExamples, asks_of
from transforms.storage import Storage

pytestmark = pytest.mark.timeout(300)
STAGE = "SeparateManifest/Separate/SeparateMixtures/"
ROWS = 10_000


class Graph:
    """The leaves of a pipeline: which makes what, and which takes it."""

    def __init__(self, pipeline: beam_runner_api_pb2.Pipeline) -> None:
        self.components = pipeline.components
        self.steps = {
            key: step
            for key, step in self.components.transforms.items()
            if not step.subtransforms and step.spec.urn
        }
        self.makers = {
            output: step for step in self.steps.values() for output in step.outputs.values()
        }

    def named(self, part: str) -> list[Any]:
        return [step for step in self.steps.values() if part in step.unique_name]

    def before(self, step: Any) -> list[Any]:
        return [self.makers[each] for each in step.inputs.values()]

    def main_inputs(self, step: Any) -> list[Any]:
        """Those that its elements come from, side inputs left out."""
        if not step.spec.urn.startswith("beam:transform:pardo"):
            return self.before(step)
        payload = beam_runner_api_pb2.ParDoPayload.FromString(step.spec.payload)
        return [
            self.makers[pcoll]
            for tag, pcoll in step.inputs.items()
            if tag not in payload.side_inputs
        ]

    def hints(self, step: Any) -> Mapping[str, bytes]:
        environment = self.components.environments[step.environment_id]
        return dict(environment.resource_hints)


@pytest.fixture(scope="module")
def graph() -> Graph:
    return Graph(submitted("--min_ram", "16GB"))


def submitted(*more: str, earlier: Earlier | None = None) -> beam_runner_api_pb2.Pipeline:
    """The graph of a run, as it is handed to a runner."""
    words = ["--manifest", "rows.csv", "--output", "out", *more]
    arguments = parse(SEPARATE, words)
    config = separate_config(arguments, execution_of(arguments))
    job = SeparateJob(config)
    folder = OutputFolder(
        uri=config.output,
        storage=storage_of(config, job.access),
        earlier=earlier or Earlier(record=None),
    )
    models = Models(
        rate_hz=32_000,
        window_samples=320_000,
        scorer="own",
        capabilities=Capabilities(),
        digests={},
    )
    pipeline = beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions(list(arguments.beam)))
    _ = pipeline | "SeparateManifest" >> job.graph(folder, models)
    return pipeline.to_runner_api()


def test_the_graph_of_a_resumed_run_does_not_grow_with_what_was_left() -> None:
    """Dataflow takes 10 MB: a thousand workers leave so many names of files in minutes."""
    sizes = []
    for count in (1, 100_000):
        uris = tuple(f"gs://bucket/out/_work/journal/{i:032x}.parquet" for i in range(count))
        left = Earlier(record=None, table_uris=uris, journal_uris=uris, letter_uris=uris)
        sizes.append(submitted("--resume", earlier=left).ByteSize())
    # Not to the byte: Beam compresses pickled functions, which hold addresses in memory.
    assert abs(sizes[0] - sizes[1]) < 1_000
    assert sizes[0] < 1_000_000


def test_what_decides_whether_a_row_stays_is_small() -> None:
    """Of a row of 1.5 KB in the tables, its id, its digest and its file are shuffled."""
    kept = KeptRow(
        id="recordings/2024/0123456789", row_sha256="f" * 64, uri="gs://b/out/" + "j" * 60,
        in_table=False,
    )  # fmt: skip
    assert len(registry.get_coder(KeptRow).encode(kept)) < 400


def test_samples_are_never_shuffled(graph: Graph) -> None:
    """What is read stays in the fused steps from reading to writing: they shuffle nothing."""
    inside = graph.named(STAGE)
    kinds = Counter(step.spec.urn for step in inside)
    assert set(kinds) == {"beam:transform:pardo:v1", "beam:transform:flatten:v1"}
    assert not [step for step in inside if "Reshuffle" in step.unique_name]


def test_only_rows_and_failures_leave_the_steps_that_hold_samples(graph: Graph) -> None:
    """Whatever crosses to other machines is written down in between."""
    leaving = {
        re.sub(r"/ParDo\(.*|/FlatMap\(.*", "", maker.unique_name).removeprefix(STAGE)
        + ("" if tag in ("None", "main", "0") else f" [{tag}]")
        for step in graph.steps.values()
        if STAGE not in step.unique_name
        for pcoll in step.inputs.values()
        for maker in [graph.makers[pcoll]]
        if STAGE in maker.unique_name
        for tag in [next(tag for tag, out in maker.outputs.items() if out == pcoll)]
    }
    assert leaving == {
        "Done",
        "AttachQueries/Attach [failed]",
        "ReadAudio/Read [failed]",
        "SeparateClips/Part [failed]",
        "WriteStems/Write [failed]",
        "SeparateLongRecordings/Stream [failed]",
    }


def test_hints_are_of_reading_separating_and_writing_and_of_nothing_else(graph: Graph) -> None:
    """ADR 0101: one stage; the manifest, the queries and the tables are other machines' work."""
    hinted = {step.unique_name for step in graph.steps.values() if graph.hints(step)}
    assert hinted == {step.unique_name for step in graph.named(STAGE)}
    for name in ("ReadAudio/Read", "SeparateClips/Infer", "ScoreStems/Infer", "WriteStems/Write"):
        assert any(f"{STAGE}{name}" in each for each in hinted)


def test_all_hints_together_are_those_of_one_stage() -> None:
    """Beam adds up the last one at each level of nesting, which would part the steps."""
    given = {"accelerator": "type:a;count:1", "cpu_count": "8", "min_ram": "16GB",
             "max_active_bundles_per_worker": "16"}  # fmt: skip
    components = submitted(
        *(f"--{name}={value}" for name, value in given.items()), "--runner=DataflowRunner"
    ).components
    (hints,) = (
        dict(e.resource_hints) for e in components.environments.values() if e.resource_hints
    )
    assert {urn.split(":")[2]: value for urn, value in hints.items()} == {
        "accelerator": b"type:a;count:1",
        "cpu_count": b"8",
        "min_ram_bytes": b"16000000000",
        "max_active_bundles_per_worker": b"16",
    }


def _fused(graph: beam_runner_api_pb2.Pipeline) -> tuple[Any, list[Any]]:
    """The components of a graph, and its stages as Beam's local runner fuses them."""
    context, stages = FnApiRunner().create_stages(graph)
    return context.components, stages


def _ends(stage: Any, kind: str) -> list[str]:
    """What a stage takes (``source``) or gives (``sink``), as buffers of the runner."""
    urn = f"beam:runner:{kind}:v1"
    return [each.spec.payload.decode() for each in stage.transforms if each.spec.urn == urn]


def test_the_machines_with_the_accelerator_take_rows_right_from_a_shuffle() -> None:
    """Asserted of the fused graph: nothing is written down for them in between, and no embedding
    is, but those of example clips, which they look up."""
    components, stages = _fused(submitted("--min_ram", "16GB"))
    hinted = [
        stage
        for stage in stages
        if stage.environment and components.environments[stage.environment].resource_hints
    ]
    (taking,) = (s for s in hinted if any("ReadAudio" in t.unique_name for t in s.transforms))
    (source,) = _ends(taking, "source")
    assert source.startswith("group:")
    assert "GroupByMixture-Spread" in source
    # Another begins behind the Flatten of what both journals passed, and touches no samples.
    assert all(
        "/Done" in each.unique_name or not each.spec.urn.startswith("beam:transform:pardo")
        for stage in hinted
        if stage is not taking
        for each in stage.transforms
    )
    sides = {side for stage in hinted for side in stage.side_inputs()}
    assert len(sides) == 1
    assert all("EmbedExamples" in _maker(components, side) for side in sides)


def _maker(components: Any, pcoll: str) -> str:
    (name,) = (
        step.unique_name
        for step in components.transforms.values()
        if not step.subtransforms and pcoll in step.outputs.values()
    )
    return name


def test_rows_pass_four_shuffles_before_they_are_separated() -> None:
    _, stages = _fused(submitted("--min_ram", "16GB"))
    groups = {each for stage in stages for each in _ends(stage, "sink") if "group:" in each}
    on_the_way = [
        "ReadManifest-Spread", "AdmitRows-ById", "GroupByMixture-ByMixture", "GroupByMixture-Spread"
    ]  # fmt: skip
    for name in on_the_way:
        assert len([each for each in groups if name in each]) == 1
    others = ("Write", "Summarise", "DistinctColumns", "EmbedExamples/Distinct")
    assert not [e for e in groups if not any(name in e for name in (*on_the_way, *others))]


def test_a_row_is_small_when_it_goes_to_the_machines_with_the_accelerator() -> None:
    """0.4 KB, with names as long as those of archives; its embeddings would be 8 KB."""
    name = "recordings/2024/0123456789abcdef"
    row = ManifestRow(
        id=name,
        mixture_uri=f"gs://a-bucket/{name}.wav",
        reference_uri=f"gs://a-bucket/references/{name}.wav",
        positive_text="a dog barking in the distance",
        negative_text="a stream of running water",
        offset_s=10.0,
        duration_s=10.0,
        dataset="audiocaps",
        split="test",
        label="dog",
        manifest_uri="gs://a-bucket/manifests/rows.parquet",
        manifest_row=123_456,
    )
    piece = MixtureRows(rows=(row,))
    coder = registry.get_coder(MixtureRows)
    assert len(spread_key(piece)) + len(coder.encode(piece)) <= 400
    assert coder.decode(coder.encode(piece)) == piece
    assert (
        registry.get_coder(ManifestRow).decode(registry.get_coder(ManifestRow).encode(row)) == row
    )


def test_a_fusion_break_precedes_the_separation(graph: Graph) -> None:
    """From reading audio backwards, the first shuffle spreads pieces; it gathers no rows."""
    (step,) = graph.named(f"{STAGE}ReadAudio/Read")
    passed = []
    while not step.spec.urn.startswith("beam:transform:group_by_key"):
        (step,) = graph.main_inputs(step)
        passed.append(step.unique_name)
    assert step.unique_name == "SeparateManifest/GroupByMixture/Spread"
    assert not [name for name in passed if "Embed" in name]


def _shuffles_before(graph: Graph, part: str) -> set[str]:
    """Shuffles that the elements of a step went through."""
    found, left, seen = set(), graph.named(part), set()
    while left:
        step = left.pop()
        if step.unique_name in seen:
            continue
        seen.add(step.unique_name)
        if step.spec.urn.startswith("beam:transform:group_by_key"):
            found.add(step.unique_name.split("/")[-2])
        left += graph.main_inputs(step)
    return found


def test_splits_and_queries_are_spread_before_work_is_done_on_them(graph: Graph) -> None:
    assert _shuffles_before(graph, "ReadManifest/ReadSplits") == {"ReshufflePerKey"}
    assert "Distinct" in _shuffles_before(graph, "EmbedExamples/Embed")


def test_what_all_rows_may_share_is_combined_before_it_is_shuffled(graph: Graph) -> None:
    """A runner lifts these combiners: of a hot key, one value a bundle is shuffled, not each."""
    liftable = {
        step.unique_name.removeprefix("SeparateManifest/")
        for step in graph.components.transforms.values()
        if step.spec.urn == "beam:transform:combine_per_key:v1"
    }
    for name in (
        "Separate/EmbedExamples/Distinct",
        "Summarise/Summarise",
        "WriteRowCounts/Add",
        "WriteMetrics/CountRows/CombinePerKey(CountCombineFn)",
    ):
        assert name in liftable
    whole = {
        step.unique_name.removeprefix("SeparateManifest/")
        for step in graph.steps.values()
        if step.spec.urn.startswith("beam:transform:group_by_key")
    }
    whole = {name for name in whole if not name.startswith(tuple(f"{each}/" for each in liftable))}
    assert {name for name in whole if "Reshuffle" not in name} == {
        "AdmitRows/ById/CoGroupByKeyImpl/GroupByKey",  # an id, which is unique
        "GroupByMixture/ByMixture",  # the rows of a mixture, without samples, cut and spread behind
        "GroupByMixture/Spread",  # a mixture; at most 256 neighbours of a shard
        "WriteMetrics/ByFile",  # the rows of a file
        "WriteSegments/ByFile",
        "WriteDeadLetters/Write/ByFile",
        "Summarise/WriteTable/ByFile",
    }


def _rows() -> list[ManifestRow]:
    return [
        ManifestRow(id=f"r{i}", mixture_uri="gs://b/one.wav", positive_text="the same for all")
        for i in range(ROWS)
    ]


def test_a_mixture_that_ten_thousand_rows_name_is_many_pieces_of_work() -> None:
    def check(pieces: list[Any]) -> None:
        sizes = [len(piece.rows) for piece in pieces]
        assert max(sizes) == 64
        assert len(sizes) == -(-ROWS // 64)
        ids = Counter(row.id for piece in pieces for row in piece.rows)
        assert ids == Counter(f"r{i}" for i in range(ROWS))

    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        pieces = pipeline | beam.Create(_rows()) | GroupByMixture() | beam.FlatMap(pieces_of)
        assert_that(pieces, check)


def test_example_clips_that_all_rows_name_are_one_key_and_one_embedding() -> None:
    clips = {"positive_text": None, "positive_audio_uris": ("nowhere.wav",)}
    rows = [dataclasses.replace(row, **clips) for row in _rows()]
    (key,) = {query.key for row in rows for query in asks_of(row)}

    def check(found: list[Any]) -> None:
        assert [each[0] for each in found] == [key]

    own = model_cache.ScorerChoice(model=model_cache.ModelChoice(name="tones"))
    with tone_runs.tones_as_models(), beam.Pipeline(runner=FnApiRunner()) as pipeline:
        embedded = pipeline | beam.Create(rows) | EmbedExamples(own, Storage(), 1)
        assert_that(embedded, check)


@pytest.fixture(scope="module")
def ten_million(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10⁷ rows in Parquet, in row groups as other writers leave them; all alike, so it is small."""
    path = tmp_path_factory.mktemp("many") / "rows.parquet"
    group = 100_000

    def constant(value: str) -> pa.Array:
        codes = pa.array([0] * group, type=pa.int32())
        return pa.DictionaryArray.from_arrays(codes, pa.array([value]))

    columns = {"id": "a", "mixture_uri": "gs://b/one.wav", "positive_text": "a dog"}
    table = pa.table({name: constant(value) for name, value in columns.items()})
    with pq.ParquetWriter(path, table.schema) as writer:
        for _ in range(100):
            writer.write_table(table)
    return path


def test_a_manifest_of_ten_million_rows_is_planned_without_reading_them(ten_million: Path) -> None:
    with mock.patch.object(pq.ParquetFile, "iter_batches", side_effect=AssertionError("read")):
        splits = readers.plan_splits(str(ten_million))
    assert len(splits) == 100
    assert [split.rows_before for split in splits] == [100_000 * i for i in range(100)]
    ends = [(split.start, split.stop) for split in splits]
    assert ends == [(i, i + 1) for i in range(100)]


def test_a_split_in_the_middle_is_read_alone(ten_million: Path) -> None:
    split = readers.plan_splits(str(ten_million))[57]
    rows: Iterator[Any] = readers.iter_split(split)
    first = next(rows)
    assert isinstance(first, ManifestRow)
    assert first.manifest_row == 5_700_001
