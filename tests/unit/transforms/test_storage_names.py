"""Names that stores take for patterns are names; what a store said before is not believed."""

from __future__ import annotations

import uuid
from pathlib import Path

import fsspec
import pytest

import stores
from manifests.files import expand
from manifests.files.writing import write_rows
from manifests.row import ManifestRow
from model.checkpoints.fetch import RetryPolicy, fetch
from transforms.storage import Storage, join

NAMES = ("run", "run1", "run12", "run[1]", "run?", "run*", "run[", "run]", "[!r]un1", "**")
FILES = ("run.json", "stems/a[1].flac", "stems/x/b?.flac")


@pytest.fixture(scope="module", params=stores.KINDS)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    with stores.place(request.param, tmp_path_factory.mktemp("store")) as uri:
        yield uri


@pytest.fixture
def place(store: str) -> str:
    """An empty folder of the store."""
    return join(store, uuid.uuid4().hex)


@pytest.fixture
def storage() -> Storage:
    return Storage(retry=RetryPolicy(attempts=1))


def _fill(storage: Storage, place: str) -> dict[str, bytes]:
    contents = {f"{name}/{file}": f"{name}/{file}".encode() for name in NAMES for file in FILES}
    for name, content in contents.items():
        storage.write_bytes(join(place, name), content)
    return contents


def _contents(storage: Storage, place: str) -> dict[str, bytes]:
    """What every file holds, by its path below the place."""
    found = {}
    for uri in storage.list_files(place, ""):
        with storage.open(uri) as file:
            found[uri.partition(place.rpartition("://")[2].strip("/"))[2].strip("/")] = file.read()
    return found


def test_every_name_is_written_found_and_read(storage: Storage, place: str) -> None:
    contents = _fill(storage, place)
    assert _contents(storage, place) == contents
    for name, content in contents.items():
        uri = join(place, name)
        assert storage.exists(uri)
        assert storage.read_bytes(uri) == content
        assert storage.read_range(uri, 1, 3) == content[1:3]
        assert storage.read_range(uri, 2, 2) == b""
    for name in NAMES:
        listed = storage.list_files(join(place, name, "stems"), ".flac")
        assert len(listed) == len(FILES) - 1


def test_what_is_removed_is_what_is_called_so(storage: Storage, place: str) -> None:
    left = _fill(storage, place)
    for name in sorted(NAMES, key=len, reverse=True):  # patterns before what they match
        storage.remove_files(storage.list_files(join(place, name), ""), place)
        left = {key: value for key, value in left.items() if key.split("/")[0] != name}
        assert _contents(storage, place) == left


def test_one_file_is_removed_and_not_those_that_it_would_match(
    storage: Storage, place: str
) -> None:
    contents = _fill(storage, place)
    for name in ("run[1]/stems/a[1].flac", "run?/stems/x/b?.flac", "run*/run.json"):
        storage.remove_files([join(place, name)], place)
        del contents[name]
    assert _contents(storage, place) == contents


def test_a_local_file_is_published_under_its_name(
    storage: Storage, place: str, tmp_path: Path
) -> None:
    _fill(storage, place)
    uri = join(place, "run[1]", "stems", "new[0-9]?*.flac")
    with storage.temporary(uri) as temporary:
        Path(temporary).write_bytes(b"new")
        storage.publish(uri, temporary)
    storage.settle([uri])
    assert storage.read_bytes(uri) == b"new"
    assert storage.list_files(join(place, "run[1]", "stems"), "*.flac") == [
        found for found in storage.list_files(place, "") if found.endswith("*.flac")
    ]


ROW = ManifestRow(id="a", mixture_uri="/m.wav", positive_text="rain")


def test_manifests_are_found_by_name_before_pattern(storage: Storage, place: str) -> None:
    for name in ("in[1]/rows[1].jsonl", "in[1]/rows1.jsonl", "in1/rows1.jsonl", "in[1]/x?.csv"):
        write_rows(join(place, name), [ROW])

    def found(name: str) -> list[str]:
        root = place.rpartition("://")[2].strip("/")
        return [uri.partition(root)[2].strip("/") for uri in expand(join(place, name))]

    assert found("in[1]/rows[1].jsonl") == ["in[1]/rows[1].jsonl"]
    assert found("in[1]/x?.csv") == ["in[1]/x?.csv"]
    assert found("in[1]") == ["in[1]/rows1.jsonl", "in[1]/rows[1].jsonl", "in[1]/x?.csv"]
    assert found("in[1]/*.jsonl") == ["in[1]/rows1.jsonl", "in[1]/rows[1].jsonl"]
    assert found("in[0-9]/*.jsonl") == ["in1/rows1.jsonl"]
    write_rows(join(place, "in[1]/y.jsonl"), [ROW])  # a listing from before is not believed
    assert "in[1]/y.jsonl" in found("in[1]")


def test_weights_are_fetched_by_name(storage: Storage, place: str, tmp_path: Path) -> None:
    _fill(storage, place)
    for name in ("run[1]/stems/a[1].flac", "run?/stems/x/b?.flac"):
        path = fetch(join(place, name), cache=tmp_path).path
        assert path.read_bytes() == name.encode()


def test_what_came_after_a_listing_is_seen(storage: Storage, place: str) -> None:
    """Clients keep listings: later objects are missing there, replaced ones have old sizes."""
    uri = join(place, "listed", "a")
    storage.write_bytes(uri, b"old")
    files, path = storage.resolve(uri)
    protocol = files.protocol if isinstance(files.protocol, str) else files.protocol[0]
    assert len(files.ls(path.rsplit("/", 1)[0])) == 1
    other = fsspec.filesystem(protocol, use_listings_cache=False, skip_instance_cache=True)
    other.pipe_file(path, b"newer")
    other.pipe_file(f"{path}2", b"later")
    assert storage.exists(f"{uri}2")
    for each, content in ((uri, b"newer"), (f"{uri}2", b"later")):
        with storage.open(each) as file:
            assert file.read() == content
