"""A file that names other files or addresses: a dead letter, and nothing else is opened."""

from __future__ import annotations

import http.server
import io
import threading
from collections.abc import Iterator
from pathlib import Path

import av
import pytest

from bench.formats import by_pyav, by_soundfile, signal
from transforms.audio import AudioError, ffmpeg
from transforms.audio.files import open_audio
from transforms.storage import Storage
from transforms.storage.access import UriAccess

SOUND = by_soundfile(signal(16_000), 16_000, "WAV", "PCM_16")


class _Server(http.server.ThreadingHTTPServer):
    asked: list[str]


class _Answers(http.server.BaseHTTPRequestHandler):
    """Gives sound for every address, and keeps count of them."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Length", str(len(SOUND)))
        self.end_headers()
        self.wfile.write(SOUND)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[_Server]:
    with _Server(("127.0.0.1", 0), _Answers) as found:
        found.asked = []
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield found
        found.shutdown()


def naming(address: str, beside: str) -> dict[str, bytes]:
    """Files in text formats that FFmpeg knows, each naming an address or a file."""
    segment = "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{}\n#EXT-X-ENDLIST\n"
    return {
        "an address in a playlist": segment.format(address).encode(),
        "a file in a playlist": segment.format(beside).encode(),
        "an address in a list": f"ffconcat version 1.0\nfile '{address}'\n".encode(),
        "a file in a list": f"ffconcat version 1.0\nfile '{beside}'\n".encode(),
        "an address in a plain list": f"{address}\n".encode(),
    }


NAMES = sorted(naming("", ""))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("isolated", [False, True])
@pytest.mark.parametrize("prefixes", [False, True])
@pytest.mark.parametrize("suffix", [".wav", ".m3u8"])
def test_nothing_else_is_opened(
    tmp_path: Path, server: _Server, name: str, suffix: str, *, isolated: bool, prefixes: bool
) -> None:
    address = f"http://127.0.0.1:{server.server_address[1]}/other.wav"
    (tmp_path / "beside.wav").write_bytes(SOUND)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(naming(address, str(tmp_path / "beside.wav"))[name])
    access = UriAccess(prefixes=(str(tmp_path),)) if prefixes else UriAccess()
    access.require(str(path))
    storage = Storage(options=access.guarding({}), isolate_decoder=isolated)
    with pytest.raises(AudioError) as caught, open_audio(storage, str(path)):
        pytest.fail("opened")
    assert caught.value.code == "not_audio"
    assert server.asked == []


def test_ffmpeg_would_open_them(tmp_path: Path, server: _Server) -> None:
    """The test above can fail: without what this project sets, the server is asked."""
    address = f"http://127.0.0.1:{server.server_address[1]}/other.wav"
    content = naming(address, "")["an address in a playlist"]
    with pytest.raises((av.error.FFmpegError, StopIteration)):
        next(av.open(io.BytesIO(content)).decode(audio=0))
    with av.open(address) as sound:
        assert sound.streams.audio
    assert server.asked


@pytest.mark.parametrize("container", ["ipod", "matroska", "ogg", "asf", "mp3", "adts", "mpegts"])
def test_every_address_is_refused_that_a_demuxer_asks_for(container: str) -> None:
    """Plain sound opens with all of what is set, and asks for no address."""
    codec = {"asf": "wmav2", "mp3": "libmp3lame", "ogg": "flac"}.get(container, "aac")
    data = by_pyav(signal(44_100), 44_100, container, codec)
    asked: list[str] = []

    def refuse(url: str, *_: object) -> None:
        asked.append(url)

    with av.open(io.BytesIO(data), options=ffmpeg._OPTIONS, io_open=refuse) as file:
        assert next(file.decode(audio=0)).samples > 0
    assert asked == []


def test_the_second_door_is_shut_as_well(
    server: _Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Even a demuxer that is not on the list gets no address opened."""
    monkeypatch.setattr(ffmpeg, "_OPTIONS", {})
    address = f"http://127.0.0.1:{server.server_address[1]}/other.wav"
    for name, content in naming(address, "/dev/null").items():
        (tmp_path / "a").write_bytes(content)
        with pytest.raises((AudioError, PermissionError)), open_audio(Storage(), f"{tmp_path}/a"):
            pytest.fail(f"opened {name}")
    assert server.asked == []
