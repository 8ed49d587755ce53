"""Writes log lines to standard error, without credentials; for every command."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from transforms.storage.access import redact


class _Discreet(logging.Formatter):
    """Formats log lines, tracebacks included, without credentials."""

    def __init__(self, secrets: Sequence[str]) -> None:
        super().__init__("%(levelname)s %(name)s: %(message)s")
        self._secrets = secrets

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record), self._secrets)


def configure_logging(level: str, secrets: Sequence[str] = ()) -> None:
    """Log lines on standard error; those of Beam and of fsspec only where they are wanted.

    Args:
        level: for the root logger.
        secrets: what no line may hold.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_Discreet(secrets))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    debug = level == "debug"
    logging.getLogger("py.warnings").setLevel(logging.WARNING if debug else logging.ERROR)
    for name in ("apache_beam", "fsspec"):  # they log what they raise too
        logging.getLogger(name).setLevel(logging.DEBUG if debug else logging.CRITICAL)
