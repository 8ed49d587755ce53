"""What the workers of a Dask cluster do: bundles of a stage through Beam's own SDK worker.

Every function here is a Dask task: its result follows from its arguments, so that Dask can do it
again when the worker that held the result is lost. Data are bytes in the encoding of Beam's data
channel throughout.
"""

from __future__ import annotations

import dataclasses
import platform
import threading
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import apache_beam
from apache_beam.coders.coder_impl import create_OutputStream  # type: ignore[attr-defined]
from apache_beam.portability.api import beam_runner_api_pb2 as protos
from apache_beam.runners.portability.fn_api_runner.execution import (
    BundleContextManager,
    FnApiRunnerExecutionContext,
    ListBuffer,
)
from apache_beam.runners.portability.fn_api_runner.fn_runner import (
    BundleManager,
    ExtendedProvisionInfo,
)
from apache_beam.runners.portability.fn_api_runner.translations import Stage
from apache_beam.runners.portability.fn_api_runner.worker_handlers import WorkerHandlerManager

from model import devices

SPREAD = b"materialize:spread "
"""How the names of buffers between the two halves of a Reshuffle begin."""
GROUP = b"group:"
"""How the names of buffers between the two halves of a GroupByKey begin."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A graph as Beam's own runner cuts it into stages; protocol buffers are serialised.

    Attributes:
        run_id: unique.
        transforms: of each stage, by its name.
        environments: id of each stage's environment; empty for one that only moves data.
        components: of the pipeline.
        safe_coders: Beam's, by the coder that each stands in for.
        channel_coders: of each PCollection that is written or read between stages.
        side_inputs: of each stage, ``(transform, tag)`` → buffer and how it is looked up.
    """

    run_id: str
    transforms: Mapping[str, Sequence[bytes]]
    environments: Mapping[str, str]
    components: bytes
    safe_coders: Mapping[str, str]
    channel_coders: Mapping[str, str]
    side_inputs: Mapping[str, Mapping[tuple[str, str], tuple[bytes, bytes]]]

    def stage(self, name: str) -> Stage:
        """A stage, as Beam describes it."""
        transforms = [protos.PTransform.FromString(data) for data in self.transforms[name]]
        return Stage(name, transforms, environment=self.environments[name])

    def parsed_components(self) -> protos.Components:
        """The components of the pipeline."""
        components: protos.Components = protos.Components.FromString(self.components)
        return components


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """What a bundle gave: pieces of encoded elements by buffer, and serialised metrics."""

    outputs: Mapping[bytes, Sequence[bytes]]
    metrics: Sequence[bytes]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BundleSummary:
    """What the launcher has to know of a bundle: bytes by buffer, and serialised metrics."""

    num_bytes: Mapping[bytes, int]
    metrics: Sequence[bytes]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Which input of which stage a bundle gets, and of which pieces.

    Attributes:
        stage: name.
        transform: of the stage, that reads; its other readers get nothing.
        buffer: that it reads.
        number: the first piece that is taken.
        of: after how many the next; neighbours in a manifest are often alike, and as long.
    """

    stage: str
    transform: str
    buffer: bytes
    number: int = 0
    of: int = 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    """A transform of a stage that writes into a buffer."""

    stage: str
    transform: str
    buffer: bytes


def worker_versions() -> tuple[str, str]:
    """Of Python and Beam; that it can be asked shows that a process has this project's packages."""
    return platform.python_version(), apache_beam.__version__


def keep(program: Program) -> Program:
    """A task whose result is the program: it is sent to each worker once."""
    return program


def run_bundle(
    program: Program, source: Source, data: Bundle | Sequence[bytes], *sides: Bundle
) -> Bundle:
    """Runs a stage over some of its input; ``sides`` are bundles that hold its side inputs."""
    devices.end_when_broken()  # Dask does its bundles again, elsewhere or in a new process
    pieces = _pieces(data, source.buffer)[source.number :: source.of]
    executor = _executor(program, source.stage, sides)
    try:
        return executor.run(source.transform, pieces)
    except BaseException:  # it may hold what the bundle left behind
        del _THREAD.executors[source.stage]
        executor.close()
        raise


def summarise_bundle(bundle: Bundle) -> BundleSummary:
    """What the launcher has to know of a bundle."""
    sizes = {buffer: sum(map(len, pieces)) for buffer, pieces in bundle.outputs.items()}
    return BundleSummary(num_bytes=sizes, metrics=bundle.metrics)


def split(program: Program, writer: Writer, num_parts: int, *data: Bundle) -> list[bytes]:
    """What bundles give to a GroupByKey, parted by key; an equal key is in an equal part."""
    buffer: Any = _manager(program, writer).get_buffer(writer.buffer, writer.transform)
    coder, key_coder = buffer._pre_grouped_coder.get_impl(), buffer._key_coder.get_impl()
    parts = [create_OutputStream() for _ in range(num_parts)]
    for bundle in data:
        for piece in bundle.outputs[writer.buffer]:
            for element in coder.decode_all(piece):
                part = zlib.crc32(key_coder.encode(element.value[0])) % num_parts
                coder.encode_to_stream(element, parts[part], True)
    return [part.get() for part in parts]


def part_of(parts: Sequence[bytes], number: int) -> list[bytes]:
    """One part of what was split."""
    return [parts[number]]


def regroup(program: Program, writer: Writer, *data: Bundle | Sequence[bytes]) -> tuple[bytes, ...]:
    """Elements one by one, for bundles to be cut from: as they are, or grouped by key."""
    manager = _manager(program, writer)
    pieces = [piece for each in data for piece in _pieces(each, writer.buffer)]
    if writer.buffer.startswith(GROUP):
        buffer: Any = manager.get_buffer(writer.buffer, writer.transform)
        for piece in pieces:
            buffer.append(piece)
        return tuple(part for (part,) in buffer.partition(max(1, len(buffer._table))) if part)
    coder: Any = manager.get_input_coder_impl(writer.transform)
    return tuple(coder.encode_nested(each) for piece in pieces for each in coder.decode_all(piece))


def count(pieces: Sequence[bytes]) -> int:
    """How many bundles could be cut."""
    return len(pieces)


def _pieces(data: Bundle | Sequence[bytes], buffer: bytes) -> Sequence[bytes]:
    return data.outputs[buffer] if isinstance(data, Bundle) else data


class _Executor:
    """A stage in one thread of a worker; kept, so that its DoFns are set up once."""

    def __init__(self, program: Program, name: str, sides: Sequence[Bundle]) -> None:
        self._context, self._manager = _context(program, name)
        self._readers = list(input_buffers(program.stage(name)))
        looked_up = program.side_inputs[name]
        for buffer, _ in looked_up.values():
            held = ListBuffer(None)
            for bundle in sides:
                for piece in bundle.outputs.get(buffer, ()):
                    held.append(piece)
            self._context.pcoll_buffers[buffer] = held
        self._context.commit_side_inputs_to_state(
            {key: (b, protos.FunctionSpec.FromString(data)) for key, (b, data) in looked_up.items()}
        )
        self._context.worker_handler_manager.register_process_bundle_descriptor(
            self._manager.process_bundle_descriptor
        )

    def run(self, transform: str, pieces: Sequence[bytes]) -> Bundle:
        outputs = self._manager.stage_data_outputs
        # A list for each, also before a GroupByKey: grouping comes when all bundles are there.
        buffers = {buffer: ListBuffer(None) for buffer in outputs.values()}
        self._context.pcoll_buffers.clear()
        self._context.pcoll_buffers.update(buffers)
        inputs: dict[str, Any] = {name: [] for name in self._readers}
        inputs[transform] = pieces
        result, _ = BundleManager(self._manager).process_bundle(inputs, outputs, {}, {})
        done = result.process_bundle
        if done.residual_roots:
            raise NotImplementedError(
                "a splittable DoFn gave work back, which this runner does not do"
            )
        return Bundle(
            outputs={buffer: list(held) for buffer, held in buffers.items()},
            metrics=[info.SerializeToString() for info in done.monitoring_infos],
        )

    def close(self) -> None:
        self._context.worker_handler_manager.close_all()


_THREAD = threading.local()


def _executor(program: Program, stage: str, sides: Sequence[Bundle]) -> _Executor:
    """The thread's executor of a stage; those of other runs are closed."""
    if getattr(_THREAD, "run_id", None) != program.run_id:
        for executor in getattr(_THREAD, "executors", {}).values():
            executor.close()
        _THREAD.run_id, _THREAD.executors = program.run_id, {}
    executors: dict[str, _Executor] = _THREAD.executors
    if stage not in executors:
        executors[stage] = _Executor(program, stage, sides)
    return executors[stage]


def input_buffers(stage: Stage) -> dict[str, bytes]:
    """Buffers that a stage reads, by the name of the transform that reads each."""
    return _buffers(stage, "beam:runner:source:v1")


def output_buffers(stage: Stage) -> dict[str, bytes]:
    """Buffers that a stage writes, by the name of the transform that writes each."""
    return _buffers(stage, "beam:runner:sink:v1")


def _buffers(stage: Stage, urn: str) -> dict[str, bytes]:
    return {
        each.unique_name: each.spec.payload for each in stage.transforms if each.spec.urn == urn
    }


def _context(
    program: Program, name: str
) -> tuple[FnApiRunnerExecutionContext, BundleContextManager]:
    """Beam's own context for bundles of a stage in this process."""
    stage, components = program.stage(name), program.parsed_components()
    workers = WorkerHandlerManager(components.environments, ExtendedProvisionInfo())
    context = FnApiRunnerExecutionContext(
        [],
        workers,
        components,
        dict(program.safe_coders),
        dict(program.channel_coders),
        num_workers=1,
    )
    context._enqueue_stage_initial_inputs(stage)  # writes the ends of its channels into the stage
    return context, context.bundle_manager_for(stage)


def _manager(program: Program, writer: Writer) -> BundleContextManager:
    return _context(program, writer.stage)[1]
