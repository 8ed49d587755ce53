"""Checks made before a job is built: is the code that would run the code of this project?

The five packages have generic names, and Python takes the first match on its path without a word
about the others (see ``docs/adr/0001-an-application-with-generic-package-names.md``).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

DISTRIBUTION = "clapsep-beam"
PACKAGES = ("terminal", "model", "manifests", "transforms", "pipelines")

_ADVICE = f"Run {DISTRIBUTION} from an environment of its own, without what shadows it."


class PackageCollisionError(RuntimeError):
    """One of the project's packages is missing, or is another distribution's."""


def code_version() -> str:
    """Returns the version of this project; ``source`` where it is not installed."""
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return "source"


def check_packages(names: Sequence[str] = PACKAGES) -> Path:
    """Checks that the project's packages share one folder and are nobody else's.

    Nothing is imported: a name means what ``import`` would find now, or has found before.

    Args:
        names: the top-level packages to look for.

    Returns:
        The folder that holds all of them.

    Raises:
        PackageCollisionError: a package is missing, has no ``__init__.py``, lies in another folder
            than the rest, or is claimed by another distribution installed in that folder.
    """
    parents = {name: _parent_of(name) for name in names}
    if len(set(parents.values())) != 1:
        places = "; ".join(f"{name} from {parent}" for name, parent in parents.items())
        raise PackageCollisionError(
            f"the packages of {DISTRIBUTION} must come from one folder, but Python finds {places}. "
            f"{_ADVICE}"
        )
    parent = parents[names[0]]
    claims = _foreign_claims(parent, names)
    if claims:
        listed = "; ".join(f"{name} by {', '.join(owners)}" for name, owners in claims.items())
        raise PackageCollisionError(
            f"packages of {DISTRIBUTION} in {parent} are claimed: {listed}. Their files may "
            f"have replaced ours. {_ADVICE}"
        )
    return parent


def _parent_of(name: str) -> Path:
    """The folder that holds the package ``name``."""
    try:
        spec = importlib.util.find_spec(name)
    except ValueError as err:  # a module made by hand, that has no spec
        raise PackageCollisionError(f"{name} was not imported from a file. {_ADVICE}") from err
    if spec is None:
        raise PackageCollisionError(f"package {name} is not on the path. Install {DISTRIBUTION}.")
    folders = list(spec.submodule_search_locations or [])
    if spec.origin is None or Path(spec.origin).stem != "__init__" or len(folders) != 1:
        found = spec.origin or ", ".join(folders) or "nowhere"
        raise PackageCollisionError(
            f"{name} should be a package of {DISTRIBUTION}, but Python finds {found}. {_ADVICE}"
        )
    return Path(folders[0]).resolve().parent


def _foreign_claims(parent: Path, names: Sequence[str]) -> Mapping[str, list[str]]:
    """Names that other distributions installed in ``parent`` brought too, with those owners."""
    claims: dict[str, list[str]] = {}
    for distribution in importlib.metadata.distributions(path=[str(parent)]):
        owner = str(distribution.name)  # None where an uninstall left half a folder
        if re.sub(r"[-_.]+", "-", owner).lower() == DISTRIBUTION:
            continue
        brought = {path.parts[0] for path in distribution.files or () if path.suffix == ".py"}
        for name in names:
            if name in brought:
                claims.setdefault(name, []).append(owner)
    return claims
