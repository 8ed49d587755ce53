"""The Flex Template's parameters are flags that exist, with their values and defaults."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipelines.flags import SEPARATE, UsageError
from pipelines.runners import beam_flags
from pipelines.runners.dataflow import accelerator_of

ROOT = Path(__file__).resolve().parents[2]
SPEC = json.loads((ROOT / "docs" / "templates" / "separate.json").read_text(encoding="utf-8"))
PARAMETERS: list[dict[str, Any]] = SPEC["metadata"]["parameters"]


def _own() -> dict[str, argparse.Action]:
    return {action.dest: action for action in SEPARATE.parser()._actions}


@pytest.mark.parametrize("parameter", PARAMETERS, ids=lambda parameter: str(parameter["name"]))
def test_a_parameter_is_a_flag_with_the_same_default(parameter: dict[str, Any]) -> None:
    action = _own().get(parameter["name"])
    if action is None:
        assert f"--{parameter['name']}" in beam_flags()
        return
    assert action.nargs != 0  # the launcher gives every parameter a value
    default = None if action.default is None else str(action.default)
    assert parameter.get("defaultValue") == default
    accepted = [re.compile(each) for each in parameter.get("regexes", [])]
    for value in [*(action.choices or []), *([default] if default is not None else [])]:
        assert all(regex.fullmatch(str(value)) for regex in accepted)
    if action.choices and accepted:
        assert not accepted[0].fullmatch("something else")


@pytest.mark.parametrize(
    ("accelerator", "fits"),
    [
        ("type:nvidia-l4;count:1;machine_type:g2-standard-8;install-nvidia-driver", True),
        ("use_nvidia_mps;install-nvidia-driver;machine_type:g2-standard-8;count:1;type:a", True),
        ("count:2;type:nvidia-tesla-t4", True),
        ("type:nvidia-l4;install-nvidia-driver", False),
        ("count:1;install-nvidia-driver", False),
        ("type:nvidia-l4;count:1;zone:a", False),
        ("nvidia-l4", False),
    ],
)
def test_an_accelerator_has_its_parts_in_any_order(accelerator: str, fits: bool) -> None:
    """The template's expression and the check of the command line agree."""
    (parameter,) = (each for each in PARAMETERS if each["name"] == "accelerator")
    assert all(bool(re.fullmatch(each, accelerator)) == fits for each in parameter["regexes"])
    with contextlib.nullcontext() if fits else pytest.raises(UsageError):
        accelerator_of(accelerator)


def test_what_a_job_cannot_do_without_is_required() -> None:
    required = {each["name"] for each in PARAMETERS if not each["isOptional"]}
    assert required == {"manifest", "output", "sdk_container_image"}


def test_every_flag_that_takes_a_value_is_a_parameter_or_left_out_for_a_reason() -> None:
    names = {each["name"] for each in PARAMETERS}
    instead_of_a_manifest = {
        "mixture", "positive", "negative", "positive_audio", "negative_audio", "text_weight",
        "reference", "recordings", "queries", "audio_column",
    }  # fmt: skip
    for_experts = {
        "max_clip_in_memory_s", "storage_options", "allowed_uri_prefix", "device", "num_threads",
        "condition_norm", "clap_scores", "shard",
        "segment_level_db", "segment_percentile", "segment_percentile_s",
        "segment_rise_db", "segment_hysteresis_db", "segment_min_gap_s", "segment_min_length_s",
    }  # fmt: skip
    of_who_waits = {"progress", "max_failure_rate"}
    of_other_engines = {"dask_client_address", "max_silence_s"}
    flags = {action.dest for action in SEPARATE.parser()._actions if action.nargs != 0}
    assert flags - names == instead_of_a_manifest | for_experts | of_who_waits | of_other_engines
    assert names - flags == {"sdk_container_image"}
