"""The page: one file that needs nothing else, with its style, script, data and pictures in it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib import resources
from typing import Any

from jinja2 import BaseLoader, Environment, StrictUndefined
from markupsafe import Markup


def render(context: Mapping[str, Any], data: str) -> str:
    """Fills the template; every value in ``context`` is text and is escaped as such.

    The page's Content-Security-Policy lets its own script run and no other, and nothing be fetched
    but audio files beside it.

    Args:
        context: what the template shows; only drawings may be ``Markup``.
        data: JSON of :func:`pipelines.reporting.clip_data.script_json`.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, loader=BaseLoader(), trim_blocks=True
    )
    script = _read("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.from_string(_read("report.html")).render(
        **context,
        # The project's own files, and JSON without any "<".
        style=Markup(_read("report.css")),  # noqa: S704
        script=Markup(script),  # noqa: S704
        script_hash=f"'sha256-{digest}'",
        data=Markup(data),  # noqa: S704
    )


def drawing(svg: str) -> Markup:
    """A drawing by :mod:`pipelines.reporting.charts`, in which matplotlib escaped all text."""
    return Markup(svg)  # noqa: S704


def _read(name: str) -> str:
    return resources.files("pipelines.reporting.page").joinpath(name).read_text(encoding="utf-8")
