"""What a URI means: paths, file URIs, chains, numeric hosts, Unicode forms; and why one fails."""

from __future__ import annotations

import errno
import os
import socket
import ssl
import unicodedata
import zipfile
from pathlib import Path

import pytest

from manifest_files import HEADER, rows, write
from manifests import files
from manifests.files import ManifestError
from manifests.row import RowError
from ports import free_port

NFC, NFD = (unicodedata.normalize(form, "Vögel.wav") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("file:///a/my%20dog.wav", "/a/my dog.wav"),
        ("file://localhost/a/my%20dog.wav", "/a/my dog.wav"),
        ("file://LocalHost/a.wav", "/a.wav"),
        ("file:/a/my%20dog.wav", "/a/my dog.wav"),
        ("FILE:///a.wav", "/a.wav"),
        ("local:///a%20b.wav", "/a b.wav"),
        ("file:////a.wav", "/a.wav"),
        ("file:///a/../b%23%3F.wav", "/b#?.wav"),
        ("file:///a/100%25.wav", "/a/100%.wav"),
        ("file:///a/100% dog.wav", "/a/100% dog.wav"),
        ("file:///a/%E6%97%A5.wav", "/a/日.wav"),
        ("file:///a/%ff.wav", "/a/\udcff.wav"),
        ("/a/my%20dog.wav", "/a/my%20dog.wav"),
        ("/a/b::c.wav", "/a/b::c.wav"),
        ("/a/b://c.wav", "/a/b:/c.wav"),
        ("gs://b/a.wav", None),
        ("zip://a.wav::file:///a.zip", None),
        ("simplecache::gs://b/a.wav", None),
    ],
)
def test_the_path_of_a_local_file(uri, path):
    assert files.local_path(uri) == path


def test_a_path_as_python_writes_it_as_a_uri_comes_back():
    for name in ("my dog.wav", "100%.wav", "a#b?c.wav", "日本.wav", "a;b.wav", "~x.wav", "a::b"):
        path = Path("/data") / name
        assert files.local_path(path.as_uri()) == str(path)


def test_a_file_uri_of_another_machine_is_refused():
    for uri in ("file://server/share/a.wav", "file://a.wav", "file://~/a.wav"):
        with pytest.raises(ValueError, match=r"file:// names the machine '.+'; expected file:///"):
            files.local_path(uri)


def test_a_row_with_a_file_uri_of_another_machine_is_said(tmp_path):
    uri = write(tmp_path / "m.csv", f"{HEADER}\na,file://server/a.wav,dog\nb,file:/b.wav,dog\n")
    bad, good = rows(uri)
    assert isinstance(bad, RowError)
    assert (bad.field, good.mixture_uri) == ("mixture_uri", "file:/b.wav")
    assert "names the machine 'server'" in bad.expected


@pytest.mark.parametrize(
    ("uri", "links"),
    [
        ("a::b.wav", ["a::b.wav"]),
        ("/x/a::b://c", ["/x/a::b://c"]),
        ("zip://x.wav::file:///a.zip", ["zip://x.wav", "file:///a.zip"]),
        ("simplecache::gs://b/a.wav", ["simplecache", "gs://b/a.wav"]),
        ("http://[::1]:80/a.wav", ["http://[::1]:80/a.wav"]),
        ("zip://x.wav::http://[fe80::2]/a.zip", ["zip://x.wav", "http://[fe80::2]/a.zip"]),
        ("http://h/[::1].wav", ["http://h/[", "1].wav"]),
    ],
)
def test_links_of_a_chain(uri, links):
    assert files.links_of(uri) == links


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("http://[::1]:80/a.wav", "http://[0000:0000:0000:0000:0000:0000:0000:0001]:80/a.wav"),
        ("http://[fe80::1%25eth0]/a", "http://[fe80:0000:0000:0000:0000:0000:0000:0001%eth0]/a"),
        ("http://[fe80::1%lo]/a", "http://[fe80:0000:0000:0000:0000:0000:0000:0001%lo]/a"),
        ("http://h/a[1].wav", "http://h/a[1].wav"),
    ],
)
def test_a_numeric_host_is_no_pattern_and_no_chain(uri, address):
    file_system, path = files.connect(uri)
    assert (file_system.protocol[0], path) == ("http", address)


def test_a_file_uri_in_a_chain_leads_where_it_leads_alone(tmp_path):
    with zipfile.ZipFile(tmp_path / "my clips.zip", "w") as archive:
        archive.writestr("m.csv", f"{HEADER}\na,dog.wav,dog\nb,../x.wav,dog\n")
    uri = "zip://m.csv::" + (tmp_path / "my clips.zip").as_uri()
    row, climbing = rows(uri)
    assert row.mixture_uri == uri.replace("m.csv", "dog.wav")
    assert climbing.field == "mixture_uri"
    with pytest.raises(ValueError, match="cannot be a link"):
        files.connect("zip://m.csv::file:///a%3A%3As3://b/c.zip")


@pytest.mark.parametrize(
    ("folder", "uri", "absolute"),
    [
        ("/data", "a::b.wav", "/data/a::b.wav"),
        ("/data", "x/a::b.wav", "/data/x/a::b.wav"),
        ("gs://k/d", "a::b.wav", "gs://k/d/a::b.wav"),
        ("/data", "file:x.wav", "/data/file:x.wav"),
        ("/data", "100%20.wav", "/data/100%20.wav"),
        ("zip://d::gs://k/a.zip", "x.wav", "zip://d/x.wav::gs://k/a.zip"),
        ("zip://::gs://k/a.zip", "x/y.wav", "zip://x/y.wav::gs://k/a.zip"),
        ("simplecache::gs://k/d", "../x.wav", "simplecache::gs://k/x.wav"),
        ("/data", "zip://x.wav::a b.zip", "zip://x.wav::/data/a b.zip"),
        ("gs://k/d", "zip://x.wav::a.zip", "zip://x.wav::gs://k/d/a.zip"),
        ("/data", "zip://x.wav::file:/a.zip", "zip://x.wav::file:/a.zip"),
        ("/data", "simplecache::gs://b/a.wav", "simplecache::gs://b/a.wav"),
        ("http://[::1]:8/d", "x.wav", "http://[::1]:8/d/x.wav"),
        ("/data", "~/x.wav", "/data/~/x.wav"),
    ],
)
def test_relative_uris(folder, uri, absolute):
    assert files.resolve(folder, uri) == absolute


def test_a_home_is_resolved_in_flags(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert files.absolute("~/x y") == f"{tmp_path}/x y"
    assert files.absolute("~") == str(tmp_path)
    assert files.absolute("~root/x") == os.path.expanduser("~root/x")
    assert files.absolute("a~b") == f"{tmp_path}/a~b"
    assert files.absolute("gs://b/~x/") == "gs://b/~x"
    assert files.absolute("gs://") == "gs://"
    assert files.absolute("file://localhost/a%20b/") == "/a b"
    write(tmp_path / "m.csv", f"{HEADER}\na,m.wav,dog\n")
    assert files.expand("~/m.csv") == (f"{tmp_path}/m.csv",)


@pytest.mark.parametrize(("given", "there"), [(NFC, NFD), (NFD, NFC)])
def test_a_name_is_found_in_its_other_unicode_form(tmp_path, given, there):
    folder = tmp_path / unicodedata.normalize("NFC", "März")
    folder.mkdir()
    (folder / there).write_bytes(b"x")
    for parent in (folder, tmp_path / unicodedata.normalize("NFD", "März")):
        assert files.existing_path(f"{parent}/{given}") == f"{folder}/{there}"
    missing = f"{folder}/é.wav"
    assert files.existing_path(missing) == missing


def test_a_name_as_given_comes_before_its_other_forms(tmp_path):
    for name in (NFC, NFD):
        (tmp_path / name).write_bytes(b"x")
        assert files.existing_path(f"{tmp_path}/{name}") == f"{tmp_path}/{name}"


def test_a_name_that_several_files_have_is_said(tmp_path):
    for form in ("NFC", "NFD"):
        (tmp_path / unicodedata.normalize(form, "éü.wav")).write_bytes(b"x")
    mixed = unicodedata.normalize("NFC", "é") + unicodedata.normalize("NFD", "ü") + ".wav"
    with pytest.raises(
        FileNotFoundError, match=r"several of the same name .*\\xe9.* and .*e\\u0301"
    ):
        files.existing_path(f"{tmp_path}/{mixed}")


def test_a_manifest_is_found_in_its_other_unicode_form(tmp_path):
    write(tmp_path / NFD.replace("wav", "csv"), f"{HEADER}\na,m.wav,dog\n")
    (row,) = rows(tmp_path / NFC.replace("wav", "csv"))
    assert row.id == "a"


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FileNotFoundError("x"), "no such file or folder"),
        (PermissionError("x"), "no permission to read it"),
        (caused(FileNotFoundError("x"), ConnectionRefusedError(111, "x")), "connection refused"),
        (caused(OSError(), socket.gaierror(-2, "Name unknown")), "name is not resolved .Name unk"),
        (TimeoutError(), "timed out"),
        (ConnectionResetError(104, "reset by peer"), "connection was lost .reset by peer"),
        (caused(FileNotFoundError(), OSError(errno.EHOSTUNREACH, "x")), "no connection .No route"),
        (ssl.SSLCertVerificationError(1, "self-signed"), "no TLS connection"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
    ],
)
def test_the_reason_of_a_failure_is_said_in_words(error, reason):
    with pytest.raises(ManifestError, match=f"^m.csv: .*{reason}"), files.reading("m.csv"):
        raise error


def test_a_manifest_on_a_server_that_does_not_answer_says_why():
    with pytest.raises(ManifestError, match="connection refused"):
        files.expand(f"http://127.0.0.1:{free_port()}/m.csv")
