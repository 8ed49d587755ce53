from __future__ import annotations

import http.server
import os
import pickle
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile

import tones
from manifests.row import ManifestRow
from transforms.audio import AudioError
from transforms.audio.files import describe, error_code, open_audio
from transforms.storage import Storage
from transforms.storage.access import NOT_ALLOWED, UriAccess, uris_of

REMOTE = UriAccess(
    prefixes=("gs://bucket/clips", "https://example.org/a/b/", "s3://whole", "http://h:8080")
)


@pytest.mark.parametrize(
    "uri",
    [
        "gs://bucket/clips/x.wav",
        "gcs://bucket/clips/deep/er/x.wav",
        "gs://bucket/clips/with space.wav",
        "https://example.org/a/b/x.wav?version=../../etc#../y",
        "https://EXAMPLE.org:443/a/b/x.wav",
        "https://example.org/a/%62/x.wav",
        "s3a://whole/anything",
        "http://h:8080/x.wav",
        "zip://inside/x.wav::gs://bucket/clips/all.zip",
        "tar://x.wav::zip://x.tar::s3://whole/all.zip",
    ],
)
def test_what_lies_below_a_prefix_is_allowed(uri: str) -> None:
    assert REMOTE.refusal(uri) is None


@pytest.mark.parametrize(
    "uri",
    [
        "/etc/passwd",
        "file:///etc/passwd",
        "local:///etc/passwd",
        "FILE:///etc/passwd",
        "file://bucket/clips/x.wav",
        "relative.wav",
        "gs://bucket/clipsandmore/x.wav",
        "gs://bucket/clips/../secret.wav",
        "gs://bucket/clips/%2e%2e/secret.wav",
        "gs://bucket/clips/%252e%252E/secret.wav",
        "gs://bucket/clips/./x.wav",
        "gs://bucket/clips\\..\\x.wav",
        "gs://bucket//clips/x.wav",
        "gs://other/clips/x.wav",
        "http://example.org/a/b/x.wav",
        "https://example.org/a/bc/x.wav",
        "https://example.org:444/a/b/x.wav",
        "https://example.org/a/b/..%2f..%2fx.wav",
        "https://example.org/a/b/..;/x.wav",
        "https://example.org@evil.org/a/b/x.wav",
        "https://evil.org/https://example.org/a/b/x.wav",
        "https://evil.org#@example.org/a/b/x.wav",
        "https://evil.org\\@example.org/a/b/x.wav",
        "https://example.org\t.evil.org/a/b/x.wav",
        "https://ex\u00adample.org/a/b/x.wav",
        "https://example.org\uff0fa/b/x.wav",
        "http://169.254.169.254/latest/meta-data/",
        "http://h:80800/x.wav",
        "http://[::ffff:169.254.169.254]/x",
        "simplecache::gs://bucket/clips/x.wav",
        "reference://x::gs://bucket/clips/refs.json",
        "zip://x.wav::/etc/all.zip",
        "zip://x.wav::file",
        "zip://x.wav::simplecache::s3://whole/a.zip",
        "zip://x.wav::reference://y::s3://whole/a.json",
        "zip://x.wav",
        "reference://s3://whole/a.json",
        "gs://bucket/clips/x.wav::file:///etc/passwd",
        "://x",
        "",
        "nonsense",
    ],
)
def test_nothing_else_is(uri: str) -> None:
    assert REMOTE.refusal(uri) is not None


def test_paths_are_compared_where_they_lead(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "x.wav").write_bytes(b"x")
    (inside / "link.wav").symlink_to(outside / "x.wav")
    (inside / "up").symlink_to(outside)
    (tmp_path / "also").symlink_to(inside)
    access = UriAccess(prefixes=(str(inside),))
    for allowed in ("x.wav", "a/../x.wav", "a::b.wav", "%2e%2e"):
        assert access.refusal(f"{inside}/{allowed}") is None
        if allowed not in ("a::b.wav", "%2e%2e"):
            assert access.refusal(f"file://{inside}/{allowed}") is None
    assert access.refusal(f"{tmp_path}/also/x.wav") is None
    assert access.refusal(os.path.relpath(inside / "x.wav")) is None
    for refused in ("inside/link.wav", "inside/up/x.wav", "inside/../outside/x.wav", "insider"):
        assert access.refusal(f"{tmp_path}/{refused}") is not None
        assert access.refusal(f"file://{tmp_path}/{refused}") is not None
        assert access.refusal(f"zip://x::{tmp_path}/{refused}") is not None
        assert access.refusal(f"zip://x::file://{tmp_path}/{refused}") is not None
    assert UriAccess(prefixes=(f"file://{tmp_path}/also/",)).refusal(f"{inside}/x.wav") is None


def test_a_prefix_that_is_not_a_place_is_refused() -> None:
    for prefix in ("gs://", "https://", "https://u:p@example.org", "https://example.org/../x"):
        with pytest.raises(ValueError, match=r"expected|part"):
            UriAccess(prefixes=(prefix,))


def test_without_prefixes_only_chains_that_lead_on_are_refused() -> None:
    anything = UriAccess()
    for uri in ("/etc/passwd", "http://169.254.169.254/", "nonsense://x", "zip://a::/b", "x::y"):
        assert anything.refusal(uri) is None
    for uri in ("reference://k::/r.json", "simplecache::http://h/x", "filecache://x", "zip://a"):
        assert anything.refusal(uri) is not None


def test_every_uri_of_a_row_is_looked_at_and_the_message_names_it() -> None:
    row = ManifestRow(
        id="x",
        mixture_uri="gs://bucket/clips/m.wav",
        reference_uri="gs://bucket/clips/r.wav",
        positive_audio_uris=("gs://bucket/clips/p.wav",),
        negative_audio_uris=("gs://bucket/clips/n.wav", "/etc/passwd"),
    )
    assert len(list(uris_of(row))) == 5
    with pytest.raises(AudioError, match=r"negative_audio_uris: /etc/passwd: .*allowed") as caught:
        REMOTE.require_row(row)
    assert caught.value.code == NOT_ALLOWED


class _Handler(http.server.BaseHTTPRequestHandler):
    clip = b""

    def do_GET(self) -> None:
        if self.path.startswith("/allowed/clip"):
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.clip)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(self.clip)
            return
        places = {"/allowed/out": "/secret/clip", "/allowed/near": "clip", "/away": "/secret/clip"}
        if self.path in places:
            self.send_response(302)
            self.send_header("Location", places[self.path])
        elif self.path.startswith("/secret"):
            self.server.reached.append(self.path)
            self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[http.server.ThreadingHTTPServer]:
    soundfile.write(tmp_path / "clip.wav", tones.tone("bell", 0.1), tones.RATE_HZ)
    _Handler.clip = (tmp_path / "clip.wav").read_bytes()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as found:
        found.reached = []
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield found
        found.shutdown()


def test_a_redirect_does_not_lead_out(server: http.server.ThreadingHTTPServer) -> None:
    base = f"http://127.0.0.1:{server.server_address[1]}"
    access = UriAccess(prefixes=(f"{base}/allowed",))
    storage = Storage(options=access.guarding({}))
    storage = pickle.loads(pickle.dumps(storage))  # noqa: S301 - as it goes to workers
    for name in ("clip", "near"):
        with open_audio(storage, f"{base}/allowed/{name}") as reader:
            assert reader.read().shape[1] == len(tones.tone("bell", 0.1))
    with pytest.raises(OSError) as caught, open_audio(storage, f"{base}/allowed/out"):  # noqa: PT011
        pass
    assert error_code(caught.value) == NOT_ALLOWED
    assert f"leads to {base}/secret/clip" in describe(caught.value, base)
    assert server.reached == []
    assert storage.read_bytes(f"{base}/away") == b""  # the operator's own may lead anywhere
    assert server.reached != []


def test_archives_give_their_members_and_nothing_from_outside(tmp_path: Path) -> None:
    clip = tmp_path / "clip.wav"
    soundfile.write(clip, tones.tone("bell", 0.1), tones.RATE_HZ)
    inside = tmp_path / "inside"
    inside.mkdir()
    with zipfile.ZipFile(inside / "a.zip", "w") as archive:
        archive.write(clip, "../../clip.wav")
        archive.write(clip, "good.wav")
    with tarfile.open(inside / "a.tar", "w") as tar:
        tar.add(clip, "good.wav")
        for name, kind in (("link.wav", tarfile.SYMTYPE), ("hard.wav", tarfile.LNKTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, str(clip)
            tar.addfile(member)
    access, storage = UriAccess(prefixes=(str(inside),)), Storage()
    for kind in ("zip", "tar"):
        uri = f"{kind}://good.wav::{inside}/a.{kind}"
        access.require(uri)
        with open_audio(storage, uri) as reader:
            assert reader.part.num_samples == len(tones.tone("bell", 0.1))
    before = sorted(tmp_path.rglob("*"))
    for name in ("link.wav", "hard.wav", "../clip.wav", str(clip)):
        with (
            pytest.raises((OSError, ValueError)),
            open_audio(storage, f"tar://{name}::{inside}/a.tar"),
        ):
            pass
    assert sorted(tmp_path.rglob("*")) == before
