"""The page: one file that needs nothing else, with its style, script, data and pictures in it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib import resources
from typing import Any

from jinja2 import BaseLoader, Environment, StrictUndefined

from transforms.redaction import redact


def render(context: Mapping[str, Any], data: str) -> str:
    """Fills the template; every value in ``context`` is text and is escaped as such.

    What the template marks ``safe`` is this project's own style and script, JSON without any "<",
    and drawings by :mod:`pipelines.reporting.charts`, in which matplotlib escaped all text.

    The page's Content-Security-Policy lets its own script run and no other, and nothing be fetched
    but audio files beside it.

    Args:
        context: what the template shows.
        data: JSON of :func:`pipelines.reporting.clip_data.script_json`.
    """
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        loader=BaseLoader(),
        trim_blocks=True,
        finalize=_discreet,
    )
    script = _read("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.from_string(_read("report.html")).render(
        **context,
        style=_read("report.css"),
        script=script,
        script_hash=f"'sha256-{digest}'",
        data=data,
    )


def _discreet(value: Any) -> Any:
    """Text without credentials; what is marked safe holds none."""
    return redact(value) if type(value) is str else value


def _read(name: str) -> str:
    return resources.files("pipelines.reporting.page").joinpath(name).read_text(encoding="utf-8")
