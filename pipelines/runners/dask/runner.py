"""Runs a job on a Dask cluster (``--runner=dask``): bundles of Beam's own runner are Dask tasks.

Stages, coders, grouping, side inputs and metrics are those of Beam's FnApiRunner; what is
distributed is each stage's bundles, and the shuffles between stages. Everything is recomputed from
its inputs where a worker is lost (``docs/adr/0402-dask-runs-the-bundles-of-beams-own-runner.md``).
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import logging
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from apache_beam.metrics.monitoring_infos import consolidate
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import common_urns, python_urns
from apache_beam.portability.api import beam_runner_api_pb2, metrics_pb2
from apache_beam.runners.common import ENCODED_IMPULSE_VALUE
from apache_beam.runners.portability.fn_api_runner import translations
from apache_beam.runners.portability.fn_api_runner.execution import FnApiRunnerExecutionContext
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner, RunnerResult
from apache_beam.runners.runner import PipelineState
from apache_beam.runners.worker.bundle_processor import DATA_INPUT_URN, DATA_OUTPUT_URN

from pipelines.config import Execution
from pipelines.runners import Opened, Runner, measurements_of
from pipelines.runners.dask import bundles
from pipelines.runners.dask.cluster import Cluster, connected

_RUNNER_URNS = frozenset(
    [
        common_urns.primitives.FLATTEN.urn,
        common_urns.primitives.GROUP_BY_KEY.urn,
        common_urns.composites.RESHUFFLE.urn,
    ]
)


def create_stages(pipeline: Any) -> tuple[Any, list[translations.Stage]]:
    """Stages as FnApiRunner makes them, but a Reshuffle only cuts new bundles.

    Beam's own adds random keys, and a bundle that ran again would part its elements in another way
    than what other workers have already taken from it.

    Raises:
        NotImplementedError: the pipeline needs what a cluster does not do.
    """
    _require_supported(pipeline)
    found: tuple[Any, list[translations.Stage]] = translations.create_and_optimize_stages(
        copy.deepcopy(pipeline),
        phases=[
            translations.annotate_downstream_side_inputs,
            translations.fix_side_input_pcoll_coders,
            translations.pack_combiners,
            translations.lift_combiners,
            translations.expand_sdf,
            translations.expand_gbk,
            _expand_reshuffle,
            translations.sink_flattens,
            translations.greedily_fuse,
            translations.read_to_impulse,
            translations.impulse_to_input,
            translations.sort_stages,
            translations.add_impulse_to_dangling_transforms,
            translations.populate_data_channel_coders,
        ],
        known_runner_urns=_RUNNER_URNS,
    )
    return found


def _require_supported(pipeline: beam_runner_api_pb2.Pipeline) -> None:
    for environment in pipeline.components.environments.values():
        if environment.urn != python_urns.EMBEDDED_PYTHON:
            raise NotImplementedError(f"the dask runner runs Python only, not {environment.urn}")
    for pcollection in pipeline.components.pcollections.values():
        if pcollection.is_bounded == beam_runner_api_pb2.IsBounded.UNBOUNDED:
            raise NotImplementedError(
                f"the dask runner does not stream, but {pcollection.unique_name} is unbounded"
            )


def _expand_reshuffle(
    stages: Iterable[translations.Stage], context: Any
) -> Iterator[translations.Stage]:
    """A write and a read, between which bundles are cut anew."""
    for stage in stages:
        (transform,) = stage.transforms
        if transform.spec.urn != common_urns.composites.RESHUFFLE.urn:
            yield stage
            continue
        pcollections = context.components.pcollections
        (source,), (target,) = transform.inputs.values(), transform.outputs.values()
        pcollections[target].coder_id = pcollections[source].coder_id
        buffer = bundles.SPREAD + transform.unique_name.encode()
        write = _half(transform.unique_name + "/Write", DATA_OUTPUT_URN, buffer)
        write.inputs.update(transform.inputs)
        read = _half(transform.unique_name + "/Read", DATA_INPUT_URN, buffer)
        read.outputs.update(transform.outputs)
        writing = translations.Stage(
            write.unique_name,
            [write],
            downstream_side_inputs=frozenset(),
            must_follow=stage.must_follow,
        )
        yield writing
        yield translations.Stage(
            read.unique_name,
            [read],
            downstream_side_inputs=stage.downstream_side_inputs,
            must_follow=translations.union(frozenset([writing]), stage.must_follow),
        )


def _half(name: str, urn: str, buffer: bytes) -> beam_runner_api_pb2.PTransform:
    spec = beam_runner_api_pb2.FunctionSpec(urn=urn, payload=buffer)
    return beam_runner_api_pb2.PTransform(unique_name=name, spec=spec)


def program_of(context: Any, stages: Sequence[translations.Stage]) -> bundles.Program:
    """What the workers need; Beam's ``context`` was made with the stages."""
    produced = FnApiRunnerExecutionContext._build_data_side_inputs_map(stages)
    looked_up = {key: value for each in produced.values() for key, value in each.items()}
    names = {stage.name: {t.unique_name for t in stage.transforms} for stage in stages}
    return bundles.Program(
        run_id=uuid.uuid4().hex,
        transforms={
            stage.name: [each.SerializeToString() for each in stage.transforms] for stage in stages
        },
        environments={stage.name: stage.environment or "" for stage in stages},
        components=context.components.SerializeToString(),
        safe_coders=dict(context.safe_coders),
        channel_coders=dict(context.data_channel_coders),
        side_inputs={
            name: {
                key: (buffer, spec.SerializeToString())
                for key, (buffer, spec) in looked_up.items()
                if key[0] in transforms
            }
            for name, transforms in names.items()
        },
    )


def resources_of(graph: bundles.Program, name: str) -> dict[str, float]:
    """Dask resources that stand for the hints of a stage's environment.

    Raises:
        NotImplementedError: a hint that has no counterpart.
    """
    environment = graph.environments[name]
    if not environment:
        return {}
    hints = graph.parsed_components().environments[environment].resource_hints
    found: dict[str, float] = {}
    for urn, value in hints.items():
        if urn == common_urns.resource_hints.ACCELERATOR.urn:
            fields = dict(f.split(":", 1) for f in value.decode().split(";") if ":" in f)
            found["GPU"] = float(fields.get("count", 1))
        elif urn == common_urns.resource_hints.MIN_RAM_BYTES.urn:
            found["MEMORY"] = float(value)
        elif urn == common_urns.resource_hints.CPU_COUNT.urn:
            found["CPU"] = float(value)
        else:
            raise NotImplementedError(f"the dask runner has no counterpart of the hint {urn}")
    return found


logger = logging.getLogger(__name__)
RETRIES = 2
"""How often a bundle that raised is tried again."""
BUNDLE_ELEMENTS = 128
"""The most elements of a bundle: what is done again when its worker is lost."""
BUNDLES_A_THREAD = 4
PART_BYTES = 16 * 2**20
MAX_PARTS = 64
"""Of a shuffle."""
JOINED_BYTES = 64 * 2**20
"""The most that one task of a shuffle splits, of what lies on its worker."""


class DaskRunner(FnApiRunner):
    """Runs pipelines on a Dask cluster.

    Bounded PCollections only, no state, timers, bundle finalisers or other languages: pipelines
    that need them are refused. A bundle may run more than once; its last result counts.
    """

    def __init__(self, address: str) -> None:
        """Nothing is connected yet.

        Args:
            address: of the scheduler, ``tcp://host:port``.
        """
        super().__init__()
        self._address = address
        self._metrics: dict[str, list[Any]] = {}

    @staticmethod
    def supported_requirements() -> tuple[str, ...]:
        """What a pipeline may ask for beyond the plain model."""
        return (str(common_urns.requirements.REQUIRES_SPLITTABLE_DOFN.urn),)

    def create_stages(self, pipeline_proto: Any) -> tuple[Any, list[translations.Stage]]:
        """As :func:`program.create_stages`."""
        return create_stages(pipeline_proto)

    def run_stages(self, stage_context: Any, stages: list[translations.Stage]) -> RunnerResult:
        """Runs the stages one after another, each on all workers.

        Raises:
            ClusterError: there is no cluster, or it is lost, or lacks what the job needs.
            RuntimeError: a DoFn raised.
        """
        with connected(self._address) as cluster:
            return _Run(cluster, program_of(stage_context, stages), self._metrics).run()

    def counts(self) -> Mapping[str, float]:
        """How far the job is, by the counters of the bundles that have ended."""
        so_far = RunnerResult(PipelineState.RUNNING, dict(self._metrics))
        return measurements_of(so_far).progress()


class Dask(Runner):
    """A Dask cluster, named by the address of its scheduler."""

    ends_with_launcher = True

    @contextmanager
    def open(
        self,
        execution: Execution,
        options: PipelineOptions,
        on_submitted: Callable[[Mapping[str, Any]], None],
    ) -> Iterator[Opened]:
        """Makes the runner; see the base class."""
        assert execution.cluster is not None  # noqa: S101 - the flags were checked
        runner = DaskRunner(execution.cluster)
        yield Opened(runner=runner, counts=runner.counts)


@dataclasses.dataclass(slots=True)
class _Written:
    """What was written into a buffer: futures of bundles, by the transform that wrote."""

    writer: bundles.Writer
    parts: list[tuple[Any, int]]


class _Run:
    """One run of a program on a cluster; ``metrics`` are those of each stage, as they come in."""

    def __init__(
        self, cluster: Cluster, graph: bundles.Program, metrics: dict[str, list[Any]]
    ) -> None:
        self._cluster, self._program, self._metrics = cluster, graph, metrics
        self._submit = functools.partial(cluster.submit, graph.run_id)
        self._stages = {name: graph.stage(name) for name in graph.transforms}
        self._resources = {name: resources_of(graph, name) for name in graph.transforms}
        self._written: dict[bytes, list[_Written]] = {}

    def run(self) -> RunnerResult:
        self._cluster.require_packages()
        for needed in self._resources.values():
            if needed:
                self._cluster.require_resources(needed)
        self._kept = self._submit(bundles.keep, self._program)
        readers = self._readers()
        for name, stage in self._stages.items():
            started_s = time.monotonic()
            self._run_stage(stage)
            logger.debug("%.2f s in stage %s", time.monotonic() - started_s, name)
            for buffer, last in readers.items():
                if last == name:
                    self._written.pop(buffer, None)  # lets go of the futures, and so of the data
        return RunnerResult(PipelineState.DONE, self._metrics)

    def _readers(self) -> dict[bytes, str]:
        """The last stage that reads each buffer."""
        last: dict[bytes, str] = {}
        for name, stage in self._stages.items():
            for buffer in bundles.input_buffers(stage).values():
                last[buffer] = name
            for buffer, _ in self._program.side_inputs[name].values():
                last[buffer] = name
        return last

    def _run_stage(self, stage: translations.Stage) -> None:
        sides = self._sides(stage)
        futures = [
            self._submit(
                bundles.run_bundle, self._kept, source, data, *sides,
                resources=self._resources[stage.name], retries=RETRIES,
            )
            for source, data in self._sources(stage)
        ]  # fmt: skip
        seen = [self._submit(bundles.summarise_bundle, each) for each in futures]
        self._metrics[stage.name] = []
        sizes: dict[Any, Mapping[bytes, int]] = {}
        for future, summary in self._cluster.results(seen):
            sizes[future.key] = summary.num_bytes
            infos = [metrics_pb2.MonitoringInfo.FromString(each) for each in summary.metrics]
            self._metrics[stage.name] = list(consolidate([*self._metrics[stage.name], *infos]))
        # Several transforms of a stage may write into one buffer, before a Flatten.
        writers = {b: transform for transform, b in bundles.output_buffers(stage).items()}
        for buffer, transform in writers.items():
            writer = bundles.Writer(stage=stage.name, transform=transform, buffer=buffer)
            parts = [
                (bundle, sizes[each.key][buffer])
                for bundle, each in zip(futures, seen, strict=True)
            ]
            self._written.setdefault(buffer, []).append(_Written(writer, parts))

    def _sides(self, stage: translations.Stage) -> list[Any]:
        buffers = dict.fromkeys(b for b, _ in self._program.side_inputs[stage.name].values())
        found = [
            bundle
            for buffer in buffers
            for written in self._written.get(buffer, ())
            for bundle, size in written.parts
            if size
        ]
        return list({each.key: each for each in found}.values())

    def _sources(self, stage: translations.Stage) -> Iterator[tuple[bundles.Source, Any]]:
        """The input of each bundle of a stage."""
        for transform, buffer in bundles.input_buffers(stage).items():
            source = bundles.Source(stage=stage.name, transform=transform, buffer=buffer)
            if buffer == translations.IMPULSE_BUFFER:
                yield source, [ENCODED_IMPULSE_VALUE]
                continue
            cuts_anew = buffer.startswith((bundles.GROUP, bundles.SPREAD))
            for written in self._written.get(buffer, ()) if not cuts_anew else ():
                for bundle, size in written.parts:
                    if size:
                        yield source, bundle
            if cuts_anew and buffer in self._written:
                yield from self._cut(source, self._regrouped(buffer))

    def _cut(self, source: bundles.Source, parts: list[Any]) -> Iterator[tuple[Any, Any]]:
        counted = [self._submit(bundles.count, part) for part in parts]
        found = {future.key: number for future, number in self._cluster.results(counted)}
        total = sum(found.values())
        at_most = max(1, -(-total // (BUNDLES_A_THREAD * self._cluster.num_threads())))
        size = min(BUNDLE_ELEMENTS, at_most)
        for part, each in zip(parts, counted, strict=True):
            of = -(-found[each.key] // size)
            for number in range(of):
                yield dataclasses.replace(source, number=number, of=of), part

    def _regrouped(self, buffer: bytes) -> list[Any]:
        """Futures of lists of elements, together all that was written into a buffer."""
        everything = [(w.writer, b, size) for w in self._written[buffer] for b, size in w.parts]
        filled = [(writer, bundle, size) for writer, bundle, size in everything if size]
        if not filled:
            return []
        writer = filled[0][0]
        total = sum(size for _, _, size in filled)
        num_parts = min(MAX_PARTS, -(-total // PART_BYTES))
        if num_parts == 1:
            data = [bundle for _, bundle, _ in filled]
            return [self._submit(bundles.regroup, self._kept, writer, *data)]
        if buffer.startswith(bundles.SPREAD):
            portions = [filled[n::num_parts] for n in range(num_parts)]
            return [
                self._submit(bundles.regroup, self._kept, writer, *(b for _, b, _ in portion))
                for portion in portions
                if portion
            ]
        # Bundles that lie on one worker are split together: a task for each bundle and part would
        # be half a million for a million elements.
        splits = [
            self._submit(bundles.split, self._kept, by, num_parts, *joined)
            for by, joined in self._joined(filled)
        ]
        return [
            self._submit(
                bundles.regroup, self._kept, writer,
                *(self._submit(bundles.part_of, each, number) for each in splits),
            )
            for number in range(num_parts)
        ]  # fmt: skip

    def _joined(
        self, filled: Sequence[tuple[bundles.Writer, Any, int]]
    ) -> Iterator[tuple[bundles.Writer, list[Any]]]:
        """Bundles of one writer on one worker, of no more bytes together than are held easily."""
        places = self._cluster.places([bundle for _, bundle, _ in filled])
        groups: dict[tuple[bundles.Writer, str], list[tuple[Any, int]]] = {}
        for writer, bundle, size in filled:
            groups.setdefault((writer, places[bundle.key]), []).append((bundle, size))
        for (writer, _), group in groups.items():
            joined: list[Any] = []
            room = JOINED_BYTES
            for bundle, size in group:
                if joined and size > room:
                    yield writer, joined
                    joined, room = [], JOINED_BYTES
                joined.append(bundle)
                room -= size
            yield writer, joined
