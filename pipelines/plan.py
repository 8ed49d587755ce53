"""What a run of the main job consists of, once the launcher has looked at everything."""

from __future__ import annotations

import dataclasses

from model import registry
from model.systems import Capabilities
from pipelines.config import SeparateConfig
from transforms import model_cache
from transforms.kept import KeptRules
from transforms.storage import Storage, join

WORK = "_work"
JOURNAL = f"{WORK}/journal"
STAGING = f"{WORK}/staging"
BOOKS = f"{WORK}/books.json"
ERROR_FILE = f"{WORK}/error.txt"
LOCK = f"{WORK}/lock.json"
LOCAL_JOURNAL_S = 2.0
REMOTE_JOURNAL_S = 30.0
"""How often a worker keeps its finished rows; elsewhere, many of them write to one bucket."""
METRICS, SUMMARY, DEAD_LETTERS = "metrics", "summary", "dead_letters"
MANIFEST = "manifest"
"""Of rendered mixtures."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A configuration, and what the launcher found out before it builds the graph.

    Attributes:
        config: of the run.
        storage: how files are reached.
        attempt: 0 for the first run into this output, 1 for the first that resumes it, …
        metrics_uris: files of metrics of earlier attempts.
        journal_uris: files of the journal that they left.
        letter_uris: files of dead letters of earlier attempts.
        rules: how what earlier attempts left is held against the manifest.
        model_rate_hz: of the model.
        window_samples: of the model.
        capabilities: of the model.
        code_version: for the metrics.
    """

    config: SeparateConfig
    storage: Storage
    attempt: int
    metrics_uris: tuple[str, ...]
    journal_uris: tuple[str, ...]
    letter_uris: tuple[str, ...] = ()
    rules: KeptRules = dataclasses.field(default_factory=KeptRules)
    model_rate_hz: int
    window_samples: int
    capabilities: Capabilities
    code_version: str

    def uri(self, name: str) -> str:
        """A place in the output folder."""
        return join(self.config.output, name)

    @property
    def kept(self) -> bool:
        """Whether earlier attempts left anything to go on with."""
        return bool(self.metrics_uris or self.journal_uris or self.letter_uris)

    @property
    def journal_interval_s(self) -> float:
        """How often finished rows are kept while the job runs."""
        return LOCAL_JOURNAL_S if self.config.execution.is_local else REMOTE_JOURNAL_S

    @property
    def prefix(self) -> str:
        """Of the names of this attempt's table files."""
        return f"part-{self.attempt:03d}"


def model_choice(config: SeparateConfig) -> model_cache.ModelChoice:
    """The model of a run."""
    return model_cache.ModelChoice(
        name=config.model,
        device=config.device,
        precision=config.precision,
        compile=config.compile,
        storage_options=config.storage_options,
    )


def scorer_choice(config: SeparateConfig) -> model_cache.ScorerChoice | None:
    """The scorer of a run; None for no CLAPScores."""
    if config.scorer == "none":
        return None
    name = (
        registry.default_scorer(config.model) if config.scorer == model_cache.OWN else config.scorer
    )
    return model_cache.ScorerChoice(model=model_choice(config), name=name)
