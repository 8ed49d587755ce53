"""Graphs as Beam's own runner cuts them into stages, and what of them a cluster can run."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from apache_beam.portability import common_urns, python_urns
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability.fn_api_runner import translations
from apache_beam.runners.portability.fn_api_runner.execution import FnApiRunnerExecutionContext
from apache_beam.runners.worker.bundle_processor import DATA_INPUT_URN, DATA_OUTPUT_URN

from pipelines.on_dask import bundles

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
            raise NotImplementedError(f"the dask engine runs Python only, not {environment.urn}")
    for pcollection in pipeline.components.pcollections.values():
        if pcollection.is_bounded == beam_runner_api_pb2.IsBounded.UNBOUNDED:
            raise NotImplementedError(
                f"the dask engine does not stream, but {pcollection.unique_name} is unbounded"
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
        else:
            raise NotImplementedError(f"the dask engine has no counterpart of the hint {urn}")
    return found
