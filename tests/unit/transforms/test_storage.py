from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import apache_beam as beam
import fsspec
import pytest
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner

from manifests.files import ManifestError, ShortTransferError
from model.checkpoints.fetch import RetryPolicy
from pipelines.runners import measurements_of
from transforms import storage
from transforms import storage as storage_module
from transforms.storage import LARGE_OBJECT_BYTES, Storage, join
from transforms.threaded import LookAhead, Overlap

GCS_VARIABLE = "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"


def test_join_puts_one_slash_between_parts() -> None:
    assert join("gs://b/x/", "y", "z.flac") == "gs://b/x/y/z.flac"
    assert join("/", "y") == "/y"


def test_a_file_is_written_whole_into_folders_that_it_needs(tmp_path: Path) -> None:
    storage = Storage(staging=str(tmp_path / "staging"))
    target = tmp_path / "a" / "b" / "x.bin"
    storage.write_bytes(str(target), b"one")
    storage.write_bytes(str(target), b"two")
    assert target.read_bytes() == b"two"
    assert list((tmp_path / "staging").iterdir()) == []
    assert oct(target.stat().st_mode & 0o777) == oct(0o666 & ~_umask())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_what_fails_while_it_is_written_leaves_the_old_file_and_nothing_else(
    tmp_path: Path,
) -> None:
    storage = Storage()
    target = tmp_path / "x.bin"
    storage.write_bytes(str(target), b"old")

    def write_half() -> None:
        with storage.temporary(str(target)) as temporary:
            Path(temporary).write_bytes(b"half")
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        write_half()
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_remote_files_are_written_listed_read_and_removed() -> None:
    storage = Storage()
    base = "memory://storage-test"
    storage.write_bytes(f"{base}/t/b.parquet", b"2")
    with storage.temporary(f"{base}/t/a.parquet") as temporary:
        Path(temporary).write_bytes(b"1")
        storage.publish(f"{base}/t/a.parquet", temporary)
    storage.write_bytes(f"{base}/t/c.txt", b"3")
    found = storage.list_files(f"{base}/t", ".parquet")
    assert [storage.read_bytes(uri) for uri in found] == [b"1", b"2"]
    with storage.open(f"{base}/t/b.parquet") as file:
        assert file.read() == b"2"
    storage.remove_files(storage.list_files(f"{base}/t", ""), base)
    storage.remove_files([f"{base}/t/gone"], base)
    assert storage.list_files(f"{base}/t", "") == []


def test_a_large_remote_object_is_read_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage()
    storage.write_bytes("memory://storage-test/large", b"abc")
    fs = fsspec.filesystem("memory")
    monkeypatch.setattr(fs, "size", lambda _: LARGE_OBJECT_BYTES + 1)
    monkeypatch.setattr(storage_module, "_BLOCK_BYTES", 2)
    fetched = []

    def read(_: str, start: int, end: int) -> bytes:
        fetched.append((start, end))
        return b"abcdefg"[start:end] + bytes(max(0, end - 7))

    monkeypatch.setattr(fs, "cat_file", read)
    with storage.open("memory://storage-test/large") as file:
        file.seek(3)
        assert file.read(1) == b"d"
        assert file.read(3) == b"efg"
        assert file.tell() == 7
    assert fetched == [(3, 5), (5, 7)]


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_only_regular_files_are_opened(tmp_path: Path, make) -> None:
    make(tmp_path / "x")
    with (
        pytest.raises(IsADirectoryError, match="not a regular file"),
        Storage().open(str(tmp_path / "x")),
    ):
        pytest.fail("opened")


def test_options_belong_to_a_protocol() -> None:
    storage = Storage(options={"gs": {"token": "anon"}})
    assert storage.options_for("gs://b/x") == {"token": "anon"}
    assert storage.options_for("/x") == storage.options_for("s3://b/x") == {}


class _Flaky:
    """Bytes of a store that fails as it is told, one call after the other."""

    def __init__(self, *failures: Exception | bytes) -> None:
        self.failures = list(failures)
        self.calls = 0

    def __call__(self, *_: object, **__: object) -> bytes:
        self.calls += 1
        if self.failures:
            failure = self.failures.pop(0)
            if isinstance(failure, Exception):
                raise failure
            return failure
        return b"whole"


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> _Flaky:
    found = _Flaky()
    fs = fsspec.filesystem("memory")
    monkeypatch.setattr(fs, "cat_file", found)
    monkeypatch.setattr(fs, "size", lambda _: 5)
    storage.take_uncounted()
    return found


class _StoreError(Exception):
    """What a store's client may raise: no OSError, and it has a status."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the store says {status}")
        self.status = status


NO_WAIT = Storage(retry=RetryPolicy(attempts=3, first_wait_s=0.0))


def test_what_passes_is_tried_again_and_counted(flaky: _Flaky) -> None:
    flaky.failures = [_StoreError(503), ConnectionResetError("gone")]
    with NO_WAIT.open("memory://b/x") as file:
        assert file.read() == b"whole"
    assert flaky.calls == 3
    assert storage.take_uncounted() == {
        "Storage/transient_503": 1,
        "Storage/transient_ConnectionResetError": 1,
    }
    assert storage.take_uncounted() == {}


def test_a_short_answer_is_never_taken_for_the_file(flaky: _Flaky) -> None:
    flaky.failures = [b"who"]
    with NO_WAIT.open("memory://b/x") as file:
        assert file.read() == b"whole"
    flaky.failures = [b"who"] * 3
    with pytest.raises(OSError, match="3 bytes arrived of 5"), NO_WAIT.open("memory://b/x"):
        pytest.fail("opened")
    with pytest.raises(OSError, match="5 bytes arrived of 9"):
        NO_WAIT.read_range("memory://b/x", 1, 10)


@pytest.mark.parametrize(
    ("status", "kind"), [(401, PermissionError), (403, PermissionError), (404, FileNotFoundError)]
)
def test_what_lasts_is_not_tried_again(flaky: _Flaky, status: int, kind: type[Exception]) -> None:
    flaky.failures = [_StoreError(status)]
    with pytest.raises(kind, match=f"memory://b/x: the store says {status}"):
        NO_WAIT.read_bytes("memory://b/x")
    assert flaky.calls == 1
    assert storage.take_uncounted() == {}


def test_a_store_that_keeps_failing_is_an_os_error(flaky: _Flaky) -> None:
    flaky.failures = [_StoreError(429)] * 3
    with pytest.raises(OSError, match="memory://b/x: _StoreError: the store says 429") as caught:
        NO_WAIT.read_bytes("memory://b/x")
    assert caught.type is OSError
    assert flaky.calls == 3


def test_whatever_a_store_raises_is_an_os_error(flaky: _Flaky) -> None:
    flaky.failures = [KeyError("there is no item in the archive")]
    with pytest.raises(OSError, match="memory://b/x: KeyError: 'there is no item"):
        NO_WAIT.read_bytes("memory://b/x")
    assert flaky.calls == 1


@pytest.mark.parametrize(("protocol", "calls"), [("gs", 1), ("s3", 1), ("https", 3)])
def test_clients_that_repeat_requests_are_left_to_it(protocol: str, calls: int) -> None:
    operation = _Flaky(*[_StoreError(503)] * 3)
    with pytest.raises(OSError, match="503"):
        NO_WAIT.retrying(f"{protocol}://b/x", operation)
    assert operation.calls == calls
    short = _Flaky(ShortTransferError("1 byte arrived of 2"))
    assert NO_WAIT.retrying(f"{protocol}://b/x", short) == b"whole"


def test_an_iteration_goes_on_where_it_failed() -> None:
    failures = [ManifestError("x"), ManifestError("y")]
    for failure in failures:
        failure.__cause__ = ConnectionResetError("gone")

    def make() -> Iterator[int]:
        for number in range(6):
            if number == 2 * len(failures) and failures:
                raise failures.pop()
            yield number

    assert list(NO_WAIT.iterate("memory://b/x", make)) == list(range(6))
    assert failures == []


def test_what_clients_repeat_is_counted_and_not_printed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    storage.listen_to_clients()
    storage.listen_to_clients()
    storage.take_uncounted()
    client = logging.getLogger("gcsfs")
    client.debug("_request retrying after exception: 503")
    client.error("_request out of retries on exception: 503")
    client.error("the bucket is gone")
    assert storage.take_uncounted() == {"Storage/transient_gcsfs": 1}
    assert [record.getMessage() for record in caplog.records] == ["the bucket is gone"]


def test_counts_reach_beam_from_any_thread() -> None:
    def seen(_: int) -> int:
        operation = _Flaky(_StoreError(503))
        return len(NO_WAIT.retrying("memory://b/x", operation))

    storage.take_uncounted()
    pipeline = beam.Pipeline(runner=FnApiRunner())
    _ = pipeline | beam.Create([1, 2, 3], reshuffle=False) | beam.ParDo(_AheadFn(seen))
    result = pipeline.run()
    assert measurements_of(result).counters["Storage/transient_503"] == 3
    assert storage.take_uncounted() == {}


class _AheadFn(beam.DoFn):
    def __init__(self, function: Callable[[int], int]) -> None:
        self._function = function

    def process(self, element: int) -> Iterator[int]:
        ahead = LookAhead(self._function, Overlap(num_threads=2, max_pending=2), "Test", "t")
        yield from ahead.map([element])
        ahead.close()


@pytest.mark.parametrize(
    "imported", ["", "import gcsfs, fsspec; fsspec.get_filesystem_class('gs')"]
)
@pytest.mark.parametrize(
    ("chosen", "module"),
    [
        (None, "gcsfs.core"),
        ("false", "gcsfs.core"),
        ("0", "gcsfs.core"),
        ("true", "gcsfs.extended_gcsfs"),
    ],
)
def test_a_bucket_is_not_asked_by_grpc_unless_its_user_says_so(
    imported: str, chosen: str | None, module: str
) -> None:
    script = f"""{imported}
from manifests.files import filesystem
from model.checkpoints.fetch import open_filesystem, storage_options
from transforms.storage import Storage

options = {{"token": "anon"}}
by_protocol = {{"gs": options, "gcs": options}}
with storage_options(by_protocol):
    found = [] if {bool(imported)} else [open_filesystem("gs://b/a")[0]]
found += [Storage(options=by_protocol).resolve("gs://b/a")[0], filesystem("gcs://b/a", options)[0]]
print({{type(each).__module__ for each in found}})
"""
    environment = {name: text for name, text in os.environ.items() if name != GCS_VARIABLE}
    said = subprocess.run(
        [sys.executable, "-c", script],
        env=environment | ({} if chosen is None else {GCS_VARIABLE: chosen}),
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == str({module})


def test_what_ended_processes_left_is_removed_wherever_it_was_staged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that go to another disk are not written in the staging folder."""
    output, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    (elsewhere / "deep").mkdir(parents=True)
    output.mkdir()
    (output / "stems").symlink_to(elsewhere)
    device = storage_module._device

    def other(path: str) -> int:
        return device(path) + os.path.realpath(path).startswith(str(elsewhere))

    monkeypatch.setattr(storage_module, "_device", other)
    storage = Storage(staging=str(output / "_work" / "staging"))
    left = []
    for uri in (output / "run.json", output / "stems" / "a.flac", output / "stems/deep/b.flac"):
        with storage.temporary(str(uri)) as temporary:
            Path(f"{temporary}.tmp").write_bytes(b"half")
            left.append(os.path.dirname(temporary))
        storage.write_bytes(str(uri), b"whole")
    assert left == [storage.staging, f"{output}/stems", f"{output}/stems/deep"]
    storage.discard_unfinished(str(output))
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {"out/run.json", "elsewhere/a.flac", "elsewhere/deep/b.flac"}
