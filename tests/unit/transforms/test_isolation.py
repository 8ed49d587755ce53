"""Audio decoded in another process: the same samples and errors, and crashes that stay there."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile

from bench.formats import by_pyav
from bench.formats import signal as noise
from transforms.audio import AudioError, AudioPart, Request, decoding, isolation
from transforms.audio.files import open_audio
from transforms.storage import Storage

HERE, APART = Storage(), Storage(isolate_decoder=True)
RATE_HZ = 8_000


@pytest.fixture(autouse=True)
def _no_decoder_is_left() -> Iterator[None]:
    yield
    while isolation._IDLE:
        isolation._IDLE.pop().end()


@pytest.fixture
def wav(tmp_path: Path) -> str:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (4_000, 2)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", noise, RATE_HZ, "FLOAT")
    return str(tmp_path / "a.wav")


def test_samples_and_parts_are_the_same(wav: str) -> None:
    for place in ((None, None), (0.1, 0.25)):
        with open_audio(HERE, wav, *place) as one, open_audio(APART, wav, *place) as other:
            assert one.part == other.part
            np.testing.assert_array_equal(one.read(), other.read())


def test_blocks_are_the_same_and_can_be_asked_for_again(wav: str) -> None:
    with open_audio(APART, wav) as reader:
        blocks = list(reader.blocks(1_024))
    assert [block.shape for block in blocks] == [(2, 1_024)] * 3 + [(2, 928)]
    np.testing.assert_array_equal(np.concatenate(blocks, axis=1), soundfile.read(wav)[0].T)


def test_what_has_no_descriptor_is_the_same(wav: str) -> None:
    HERE.write_bytes("memory://isolation/a.wav", Path(wav).read_bytes())
    with open_audio(APART, "memory://isolation/a.wav", 0.1) as reader:
        np.testing.assert_array_equal(reader.read(), soundfile.read(wav)[0][800:].T)


def test_one_process_is_kept_for_the_next_file(wav: str) -> None:
    seen = set()
    for _ in range(3):
        with open_audio(APART, wav) as reader:
            reader.read()
        (decoder,) = isolation._IDLE
        seen.add(decoder._process.pid)
    assert len(seen) == 1


def test_errors_are_the_same_and_the_process_goes_on(wav: str, tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("no audio")
    for bad, place, code in (
        (str(tmp_path / "text.wav"), (None, None), "not_audio"),
        (wav, (9.0, None), "zero_duration"),
    ):
        said = []
        for storage in (HERE, APART):
            with pytest.raises(AudioError) as caught, open_audio(storage, bad, *place):
                pytest.fail("opened")
            assert caught.value.code == code
            said.append(str(caught.value))
        assert said[0] == said[1]
        assert len(isolation._IDLE) == 1


def test_an_error_while_samples_are_read(tmp_path: Path) -> None:
    samples = np.zeros(4_000, np.float32)
    samples[3_000] = np.nan
    soundfile.write(tmp_path / "nan.wav", samples, RATE_HZ, "FLOAT")
    with (
        pytest.raises(AudioError) as caught,
        open_audio(APART, str(tmp_path / "nan.wav")) as reader,
    ):
        list(reader.blocks(1_000))
    assert caught.value.code == "not_finite"
    assert len(isolation._IDLE) == 1


def test_a_file_that_is_left_unread_or_half_read(wav: str) -> None:
    with open_audio(APART, wav):
        pass
    assert len(isolation._IDLE) == 1
    with open_audio(APART, wav) as reader:
        next(reader.blocks(100))
    assert isolation._IDLE == []  # samples were still on their way
    with open_audio(APART, wav) as reader:
        assert reader.read().shape == (2, 4_000)


def test_an_error_of_the_one_who_reads_is_not_a_crash(wav: str) -> None:
    with pytest.raises(ConnectionResetError), open_audio(APART, wav):
        raise ConnectionResetError
    assert len(isolation._IDLE) == 1


def test_a_process_that_dies_is_the_fault_of_its_file(wav: str) -> None:
    with open_audio(APART, wav) as reader:
        os.kill(reader._decoder._process.pid, signal.SIGSEGV)
        with pytest.raises(AudioError, match=r"a.wav: the decoder .*SIGSEGV") as caught:
            reader.read()
    assert caught.value.code == "decoder_crashed"
    assert isolation._IDLE == []
    with open_audio(APART, wav) as reader:
        assert reader.part == AudioPart(
            sample_rate_hz=RATE_HZ, num_channels=2, start=0, num_samples=4_000
        )


def test_a_process_that_died_after_its_file_is_not_the_fault_of_the_next(wav: str) -> None:
    for _ in range(2):
        with open_audio(APART, wav) as reader:
            assert reader.read().shape == (2, 4_000)
        (decoder,) = isolation._IDLE
        os.kill(decoder._process.pid, signal.SIGSEGV)
        decoder._process.wait()


def test_a_process_that_is_silent_is_ended(wav: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_audio(APART, wav) as reader:
        pid = reader._decoder._process.pid
        os.kill(pid, signal.SIGSTOP)
        monkeypatch.setattr(isolation, "SILENCE_S", 0.05)
        with pytest.raises(AudioError, match="no answer within") as caught:
            reader.read()
    assert caught.value.code == "decoder_crashed"
    assert not Path(f"/proc/{pid}").exists()
    assert isolation._IDLE == []


def test_counting_samples_is_no_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that takes long to count gives signs of life while it is counted."""
    signs: list[object] = []
    monkeypatch.setattr(isolation, "_SIGN_S", 0.0)
    ours, theirs = multiprocessing.Pipe()
    working = isolation._Signs(theirs)
    data = by_pyav(noise(16_000), 16_000, "adts", "aac")
    with decoding.decoded(io.BytesIO(data), Request(uri="x"), working) as reader:
        assert reader.part.num_samples > 48_000
    while ours.poll():
        signs.append(ours.recv())
    assert len(signs) > 10
    assert set(signs) == {isolation._WORKING}


def test_threads_do_not_wait_for_one_another(wav: str) -> None:
    expected = soundfile.read(wav)[0].T

    def read(_: int) -> bool:
        with open_audio(APART, wav) as reader:
            return np.array_equal(reader.read(), expected)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(40)))
    assert 1 <= len(isolation._IDLE) <= 4


HANGS = """
import soundfile, sys, time
def hang(*_, **__):
    print("hangs", file=sys.stderr, flush=True)
    time.sleep(1_000)
soundfile.SoundFile = hang
"""
"""In the decoder's own process, from its start."""


@pytest.mark.parametrize("hangs", [False, True])
def test_a_child_ends_with_its_parent(wav: str, tmp_path: Path, hangs: bool) -> None:
    script = (
        "import sys; from transforms.audio import isolation\n"
        "from transforms.audio import Request\n"
        "decoder = isolation._Decoder()\n"
        "print(decoder._process.pid, flush=True)\n"
        f"decoder.open(open({wav!r}, 'rb'), Request(uri='x'), 1e6)\n"
        "print('opened', file=sys.stderr, flush=True)\n"
        "sys.stdin.read()\n"
    )
    if hangs:
        (tmp_path / "sitecustomize.py").write_text(HANGS)
    parent = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert parent.stdout is not None
    assert parent.stderr is not None
    child = int(parent.stdout.readline())
    assert parent.stderr.readline() == ("hangs\n" if hangs else "opened\n")
    parent.kill()
    parent.wait()
    for _ in range(1_000):
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or state.read_text().split(")")[1].split()[0] == "Z":
            break
        signal.sigtimedwait([], 0.01)
    else:
        pytest.fail("the child lives")


def test_empty_files_are_found_before(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    with pytest.raises(AudioError) as caught, open_audio(APART, str(tmp_path / "empty.wav")):
        pytest.fail("opened")
    assert caught.value.code == "empty_file"
    with pytest.raises(AudioError), isolation.decoded(io.BytesIO(b""), Request(uri="x")):
        pytest.fail("opened")
