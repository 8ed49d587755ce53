"""The folder with a benchmark's clips, and which of them are there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from manifests.errors import ManifestError
from manifests.files import StorageOptions, filesystem, reading, resolve
from manifests.row import ManifestRow

ON_MISSING = ("error", "skip", "ignore")
_MAX_NAMED = 20


def clip_uri(root: str, name: str) -> str:
    """The clip ``name`` of a list, below the absolute folder ``root``.

    Raises:
        ManifestError: the name leaves the bucket of ``root``.
    """
    try:
        return resolve(root, name)
    except ValueError as err:
        raise ManifestError(str(err)) from err


def listing(root: str, storage_options: StorageOptions = None) -> frozenset[str]:
    """URIs of all files below an absolute folder, from one listing of it.

    Raises:
        ManifestError: the folder is not there or cannot be listed.
    """
    files, path = filesystem(root, storage_options)
    files.invalidate_cache()
    with reading(root):
        if not files.isdir(path):
            raise ManifestError(f"{root}: no such folder")
        found = files.find(path)
    return frozenset(root + name.removeprefix(path.rstrip("/")) for name in found)


@dataclass(slots=True, kw_only=True)
class PresenceFilter:
    """Passes on the rows whose clips are all there, and remembers what is not.

    Attributes:
        present: URIs of the files that are there; None where nobody looked.
        missing: URIs of the clips that are not, in the order in which rows name them.
        num_skipped: rows that name one of them.
    """

    present: frozenset[str] | None
    missing: dict[str, None] = field(default_factory=dict)
    num_skipped: int = 0

    def __call__(self, rows: Iterable[ManifestRow]) -> Iterator[ManifestRow]:
        """Rows whose clips are all there."""
        for row in rows:
            absent = self._absent(row)
            if absent:
                self.missing.update(dict.fromkeys(absent))
                self.num_skipped += 1
            else:
                yield row

    def _absent(self, row: ManifestRow) -> list[str]:
        if self.present is None:
            return []
        alone = (row.mixture_uri, row.reference_uri)
        uris = [uri for uri in alone if uri is not None]
        uris += [*row.targets, *row.interferer_uris]
        uris += [*row.positive_audio_uris, *row.negative_audio_uris]
        return [uri for uri in uris if uri not in self.present]

    def describe(self) -> str:
        """The missing clips, a line each, the first 20 of them."""
        names = list(self.missing)
        lines = [f"missing: {uri}" for uri in names[:_MAX_NAMED]]
        if len(names) > _MAX_NAMED:
            lines.append(f"… and {len(names) - _MAX_NAMED:,} more missing")
        return "\n".join(lines)
