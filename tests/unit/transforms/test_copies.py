"""What can only be read from its start is copied once, however often and wherever it is read."""

from __future__ import annotations

import tarfile
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import soundfile

from transforms import storage
from transforms.audio import AudioError
from transforms.audio.files import open_audio
from transforms.storage import Storage

NOISE = np.random.default_rng(0).integers(-9_999, 9_999, 60_000, np.int16)


@pytest.fixture(autouse=True)
def unpacked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The members that are unpacked, in order; all that is over 1,000 bytes is large."""
    seen: list[str] = []
    unpack = Storage._unpack

    def watched(self: Storage, uri: str, num_bytes: int, file: IO[bytes]) -> None:
        seen.append(uri)
        unpack(self, uri, num_bytes, file)

    monkeypatch.setattr(Storage, "_unpack", watched)
    monkeypatch.setattr(storage, "LARGE_OBJECT_BYTES", 1_000)
    storage._COPIES.clear()
    yield seen
    storage._COPIES.clear()


@pytest.fixture(params=["zip", "tar", "tar.gz"])
def uris(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """Three members of an archive, in their chained form."""
    soundfile.write(tmp_path / "a.wav", NOISE, 16_000)
    names = ["a.wav", "b.wav", "c.wav"]
    path = tmp_path / f"all.{request.param}"
    if request.param == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
            for name in names:
                zipped.write(tmp_path / "a.wav", name)
        return [f"zip://{name}::file://{path}" for name in names]
    with tarfile.open(path, "w:gz" if request.param == "tar.gz" else "w") as tar:
        for name in names:
            tar.add(tmp_path / "a.wav", name)
    return [f"tar://{name}::file://{path}" for name in names]


def test_every_part_is_read_from_one_copy(uris: list[str], unpacked: list[str]) -> None:
    for isolated in (False, True):
        for offset_s in (3.0, 0.5, 2.0):
            files = Storage(isolate_decoder=isolated)
            with open_audio(files, uris[0], offset_s, 0.5) as reader:
                begin = reader.part.start
                samples = np.concatenate(list(reader.blocks(999)), axis=1)[0]
            np.testing.assert_array_equal(samples * 2**15, NOISE[begin : begin + 8_000])
    assert unpacked == [uris[0]]


def test_threads_wait_for_one_copy_and_have_places_of_their_own(
    uris: list[str], unpacked: list[str]
) -> None:
    ready = threading.Barrier(4)

    def read(part: int) -> bool:
        ready.wait(60)
        with open_audio(Storage(), uris[0], part * 0.5, 0.5) as reader:
            samples = reader.read()[0] * 2**15
        return np.array_equal(samples, NOISE[part * 8_000 : (part + 1) * 8_000])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(4)))
    assert unpacked == [uris[0]]


def test_few_copies_are_kept_and_one_that_is_open_stays(
    uris: list[str], unpacked: list[str]
) -> None:
    files = Storage()
    with open_audio(files, uris[0]) as first:
        for uri in uris[1:]:
            with open_audio(files, uri) as reader:
                reader.read()
        assert len(storage._COPIES) == storage.KEPT_COPIES
        np.testing.assert_array_equal(first.read()[0] * 2**15, NOISE)
    with open_audio(files, uris[2]), open_audio(files, uris[0]):
        pass
    assert unpacked == [*uris, uris[0]]


def test_a_member_that_cannot_be_unpacked_is_tried_again(
    uris: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:

        def fail(*_: object) -> None:
            raise OSError("no space left")

        broken.setattr(storage.shutil, "copyfileobj", fail)
        with pytest.raises(AudioError, match="no space left"), open_audio(Storage(), uris[0]):
            pytest.fail("opened")
    with open_audio(Storage(), uris[0]) as reader:
        assert reader.part.num_samples == len(NOISE)
