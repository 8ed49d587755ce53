"""A runner that is added from outside: Beam's own, which says what the launcher asked of it.

A real one is a module like this one under ``pipelines/runners`` and its line in the table `RUNNERS`
of ``pipelines/runners/__init__.py``: two files, and a third, ``pipelines/flags.py``, only where it
has flags of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner

from pipelines.config import CommonConfig, Execution
from pipelines.flags import UsageError
from pipelines.runners import Opened, Runner

PLACE = f"{__name__}:Toy"
asked: list[str] = []
"""What the launcher asked, in order; whoever runs a job clears it before."""


class Toy(Runner):
    """Says of the job whatever the test sets; the graph itself is Beam's own runner's."""

    builds_only = False
    leaves_at: str | None = None
    takes_as: Mapping[str, Any] | None = None
    goes_on = False

    def check(self, config: CommonConfig, options: PipelineOptions) -> None:
        asked.append("check")
        if config.output.endswith("refused"):
            raise UsageError(f"--output={config.output}: the toy does not reach it")

    @contextmanager
    def open(
        self,
        execution: Execution,
        options: PipelineOptions,
        on_submitted: Callable[[Mapping[str, Any]], None],
    ) -> Iterator[Opened]:
        asked.append("open")
        if self.takes_as is not None:
            on_submitted(self.takes_as)
        yield Opened(runner=FnApiRunner(), check=self._running, counts=self._counts)
        asked.append("close")

    def _running(self) -> None:
        if "running" not in asked:
            asked.append("running")

    def _counts(self) -> Mapping[str, float]:
        return {"done": 3, "failed": 1, "audio_s": 12.0}

    def only_builds(self, options: PipelineOptions) -> bool:
        asked.append("only_builds")
        return self.builds_only

    def left_at(self, options: PipelineOptions) -> str | None:
        asked.append("left_at")
        return self.leaves_at

    def require_ended(self, job: Mapping[str, Any], options: PipelineOptions) -> None:
        asked.append(f"require_ended {job['id']}")
        if self.goes_on:
            raise UsageError(f"--output: the toy's job {job['id']} goes on")
