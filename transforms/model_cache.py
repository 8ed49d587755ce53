"""The models of a process: each is loaded once, whichever transforms use it."""

from __future__ import annotations

import dataclasses
import sys
import threading
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch

from manifests.files import prefer_gcs_over_http
from model import devices, registry
from model.checkpoints import fetch
from model.checkpoints.fetch import OptionsByProtocol
from model.clap import QueryEncoder
from model.registry import LoadedModel

T = TypeVar("T")
OWN = "own"
_LOCK = threading.Lock()
_LOADED: dict[Hashable, Any] = {}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelChoice:
    """Which model, where and how precisely it computes.

    Attributes:
        name: a name of ``model.registry``, or the URI of a checkpoint.
        device: a torch device, or ``auto``: the GPU where the worker has one.
        precision: ``fp32``, ``tf32`` or ``bf16``.
        compile: whether the network is compiled, where that can be done.
        needs_gpu: whether a worker without a GPU fails, and does not take the CPU.
        storage_options: fsspec options by protocol, with which weights are fetched.
    """

    name: str
    device: str = devices.AUTO
    precision: str = "fp32"
    compile: bool = False
    needs_gpu: bool = False
    storage_options: OptionsByProtocol = dataclasses.field(
        default_factory=dict, compare=False, repr=False
    )

    def resolved_device(self) -> str:
        """The device of this worker.

        Raises:
            ValueError: this machine does not have it.
        """
        return (
            devices.required_gpu(self.device) if self.needs_gpu else devices.resolved(self.device)
        )

    def here(self) -> ModelChoice:
        """The same on the device of this worker: under whichever name, it is loaded once."""
        return dataclasses.replace(self, device=self.resolved_device(), needs_gpu=False)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ScorerChoice:
    """Which CLAP gives the CLAPScores; ``own`` is the one inside the model, which is circular."""

    model: ModelChoice
    name: str = OWN


def scorer_choice(model: ModelChoice, scorer: str) -> ScorerChoice | None:
    """The scorer of a run by a model; None for no CLAPScores.

    Args:
        model: of the run.
        scorer: ``own``, ``none``, a name of the registry or a URI.
    """
    if scorer == "none":
        return None
    return ScorerChoice(
        model=model, name=registry.default_scorer(model.name) if scorer == OWN else scorer
    )


def load_model(choice: ModelChoice) -> LoadedModel:
    """The model, loaded on first use: a ``model.registry.LoadedModel``.

    On a CPU torch is told to use one thread for an operation; whoever wants more calls the model
    from several. How an operation is cut up shows in the last bits of its result.
    """
    choice = choice.here()

    def load() -> LoadedModel:
        with fetch.storage_options(choice.storage_options):
            return registry.load(
                choice.name,
                device=choice.device,
                precision=choice.precision,
                compile=choice.compile,
            )

    return _once(choice, load, choice.device)


def load_scorer(choice: ScorerChoice, *, alone: bool = False) -> QueryEncoder:
    """The CLAP that scores, loaded on first use; threads as :func:`load_model` says.

    Args:
        choice: which.
        alone: load a model's own CLAP without the rest of the model, which this process does not
            use.
    """
    if choice.name == OWN and not alone:
        return load_model(choice.model).query_encoder
    choice = dataclasses.replace(choice, model=choice.model.here())

    def load() -> QueryEncoder:
        device = choice.model.device
        with fetch.storage_options(choice.model.storage_options):
            options = {"device": device, "precision": choice.model.precision}
            if choice.name == OWN:
                return registry.load_query_encoder(choice.model.name, **options)
            return registry.load_scorer(choice.name, **options)

    return _once(choice, load, choice.model.device)


def _is_beams_worker() -> bool:
    """Whether this process is one of Beam's workers, started as its own programs start them."""
    return hasattr(sys.modules["__main__"], "SdkHarness")


def _once(key: Hashable, load: Callable[[], T], device: str) -> T:
    if device == "cpu":
        torch.set_num_threads(1)
    prefer_gcs_over_http()  # weights may be in a bucket
    if _is_beams_worker():
        devices.end_when_broken()
    with _LOCK:
        if key not in _LOADED:
            _LOADED[key] = load()
        loaded: T = _LOADED[key]
        return loaded


def forget() -> None:
    """Lets go of all models of this process."""
    with _LOCK:
        _LOADED.clear()
