"""Recordings × queries: what is found where, what it is called, and what is asked."""

from __future__ import annotations

import os
import re
import socket
from collections import Counter
from pathlib import Path

import fsspec
import pytest

import stores
from manifests import example, recordings
from manifests.files import ManifestError
from manifests.files.readers import iter_rows
from manifests.recordings import (
    NamedQuery,
    Recordings,
    list_root,
    manifest_of,
    queries_of,
    read_queries,
    root_name,
    rows_of,
)
from manifests.row import ManifestRow, RowError
from manifests.shards import Broken, Listed, Recording, Skipped

DOG = NamedQuery(name="dog", fields={"positive_text": "a dog"})


def write(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def found(uri: str | Path, output: str | None = None) -> tuple[list[str], dict[str, int]]:
    """Paths of what is listed below a root, and what is passed over."""
    paths, skipped = [], Counter[str]()
    for each in list_root(0, str(uri), output):
        assert not isinstance(each, Broken)
        if isinstance(each, Skipped):
            skipped[each.why] += each.count
        else:
            paths.append(each.path)
    return paths, dict(skipped)


def test_a_folder_is_listed_with_all_below_it_and_what_is_no_audio_is_counted(
    tmp_path: Path,
) -> None:
    write(
        tmp_path, "b.WAV", "a.flac", "day 1/x.mp3", "day 1/deep/y.opus", "notes.txt", "_SUCCESS",
        ".hidden.wav", ".git/z.wav", "cover.jpg", "2024.01.05_rec.wav", "no_suffix",
    )  # fmt: skip
    assert found(tmp_path) == (
        ["2024.01.05_rec", "a", "b", "day 1/x", "day 1/deep/y"],
        {"not_audio": 3, "hidden": 3},
    )
    assert found(f"{tmp_path}/") == found(tmp_path)
    assert found(f"file://{tmp_path}") == found(tmp_path)


@pytest.mark.parametrize(
    ("pattern", "paths"),
    [
        ("*.flac", ["a"]),
        ("*", ["a", "b"]),
        ("**/*.wav", ["b", "x/c", "x/y/d"]),
        ("**/y/*.wav", ["x/y/d"]),
        ("x/*/*.wav", ["y/d"]),
        ("?/**/d.*", ["x/y/d"]),
        ("x/[ab].wav", []),
    ],
)
def test_patterns(tmp_path: Path, pattern: str, paths: list[str]) -> None:
    write(tmp_path, "a.flac", "b.wav", "x/c.wav", "x/y/d.wav")
    assert found(f"{tmp_path}/{pattern}")[0] == paths


@pytest.mark.parametrize("kind", ["memory", "s3"])
def test_a_store_is_listed_as_it_is_now(tmp_path: Path, kind: str) -> None:
    """Clients of S3 keep a listing for ever."""
    with stores.place(kind, tmp_path) as place:
        files, _ = fsspec.core.url_to_fs(place)
        for name in ("x/a.wav", "x/b.txt", "x/y/c.flac", "x/.d.wav"):
            files.pipe_file(f"{place}/{name}", b"1")
        assert found(f"{place}/x") == (["a", "y/c"], {"hidden": 1, "not_audio": 1})
        other = type(files)(skip_instance_cache=True)  # somebody else
        other.pipe_file(f"{place}/x/new.wav", b"1")
        other.pipe_file(f"{place}/x/z/e.wav", b"1")
        assert found(f"{place}/x")[0] == ["a", "new", "y/c", "z/e"]
        assert found(f"{place}/x/*/*")[0] == ["y/c", "z/e"]
        (listed,) = list_root(0, f"{place}/x/z/*.wav")
        assert isinstance(listed, Listed)
        with fsspec.open(listed.uri, "rb") as file:
            assert file.read() == b"1"


def test_what_is_there_under_the_very_name_is_no_pattern(tmp_path: Path) -> None:
    write(tmp_path, "take[1].wav", "take1.wav", "run[1]/a.wav", "run1/b.wav")
    assert found(tmp_path / "take[1].wav")[0] == ["take[1]"]
    assert found(tmp_path / "run[1]")[0] == ["a"]


def test_a_named_file_is_a_recording_whatever_it_is_called(tmp_path: Path) -> None:
    write(tmp_path, "talk", "talk.xyz")
    assert found(tmp_path / "talk")[0] == ["talk"]
    assert found(tmp_path / "talk.xyz")[0] == ["talk"]
    assert found(tmp_path)[0] == []


def test_lists_are_read_where_they_are_named_only(tmp_path: Path) -> None:
    write(tmp_path, "a.wav", "metadata.jsonl", "x.tar", "y.tar.gz", "z.parquet")
    assert found(tmp_path)[0] == ["a", "x", "y", "z"]
    (listed,) = list_root(0, f"{tmp_path}/*.jsonl")
    assert isinstance(listed, Listed)
    assert (listed.form, listed.path, listed.is_named) == ("nemo", "metadata", True)


def test_names_that_differ_in_their_suffix_stay_apart(tmp_path: Path) -> None:
    write(tmp_path, "a.wav", "a.flac", "a.b.wav")
    assert found(tmp_path)[0] == ["a", "a.wav", "a.b"]


def test_a_name_that_was_left_whole_is_nobody_elses(tmp_path: Path) -> None:
    write(tmp_path, "a.flac", "a.mp3", "a.mp3.wav", "a.mp3.wav.ogg")
    assert found(tmp_path)[0] == ["a", "a.mp3", "a.mp3.wav", "a.mp3.wav.ogg"]


def test_a_shard_beside_a_folder_of_its_name_keeps_its_suffix(tmp_path: Path) -> None:
    write(tmp_path, "day.tar", "day/a.wav", "day.wav", "rows.parquet", "deep/x/b.wav", "deep/x.tar")
    assert found(tmp_path)[0] == ["day.tar", "day.wav", "rows", "day/a", "deep/x.tar", "deep/x/b"]


def test_the_output_links_in_circles_and_sockets_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path, "a.wav", "out/stems/a/dog.flac", "x/b.wav")
    (tmp_path / "x" / "again").symlink_to(tmp_path)
    (tmp_path / "broken.wav").symlink_to(tmp_path / "nowhere")
    os.symlink(tmp_path / "out", tmp_path / "results")
    with socket.socket(socket.AF_UNIX) as there:
        there.bind(str(tmp_path / "s.wav"))
        paths, skipped = found(tmp_path, output=str(tmp_path / "out"))
    assert paths == ["a", "x/b"]
    assert skipped == {"output": 2, "not_a_file": 3}


def test_a_folder_that_cannot_be_listed_stops_nothing_else(tmp_path: Path, monkeypatch) -> None:
    write(tmp_path, "a.wav", "locked/b.wav", "z/c.wav")
    entries = recordings._entries

    def refused(files, folder):
        if folder.endswith("locked"):
            raise PermissionError(13, "Permission denied", folder)
        return entries(files, folder)

    monkeypatch.setattr(recordings, "_entries", refused)
    listed = list(list_root(0, str(tmp_path)))
    (broken,) = [each for each in listed if isinstance(each, Broken)]
    assert (broken.code, broken.uri) == ("permission", str(tmp_path / "locked"))
    assert [each.path for each in listed if isinstance(each, Listed)] == ["a", "z/c"]


@pytest.mark.parametrize("name", ["nowhere", "nowhere/*.wav", "a**/b.wav"])
def test_a_root_that_is_not_there_is_said(tmp_path: Path, name: str) -> None:
    with pytest.raises(ManifestError):
        recordings.require_root(f"{tmp_path}/{name}")


@pytest.mark.parametrize("root", ["talks", "talks/", "talks/*.wav", "link"])
def test_recordings_beside_which_the_output_would_lie_are_refused(
    tmp_path: Path, root: str
) -> None:
    write(tmp_path / "talks", "a.wav")
    (tmp_path / "link").symlink_to("talks")
    with pytest.raises(ManifestError, match=r"take another, such as .*/talks/out$"):
        recordings.require_root(f"{tmp_path}/{root}", output=f"{tmp_path}/talks")
    for other in ("talks/out", "out", "."):
        recordings.require_root(f"{tmp_path}/{root}", output=f"{tmp_path}/{other}")
    recordings.require_root(f"{tmp_path}/talks/a.wav", output=f"{tmp_path}/talks")


@pytest.fixture(scope="module")
def vault() -> str:
    return f"{stores.vault()}clips"


def test_a_part_is_refused_at_a_store_that_needs_its_options_too(vault: str) -> None:
    stores.Vault("open").pipe_file(f"{vault}/a.tar", b"")
    with pytest.raises(ManifestError, match=r"a part of one goes with --mixture"):
        recordings.require_root(f"{vault}/a.tar#b.wav", {"key": "open"})


def test_the_output_at_another_store_is_not_asked_with_the_options_of_the_recordings(
    vault: str, tmp_path: Path
) -> None:
    stores.Vault("open").pipe_file(f"{vault}/b.wav", b"")
    write(tmp_path, "a.wav")
    assert found(tmp_path, output=f"{vault}/out") == (["a"], {})
    here = list_root(0, vault, f"memory://{vault}", {"key": "open"})
    assert "b" in [each.path for each in here if isinstance(each, Listed)]
    there = list(list_root(0, vault, f"{vault}/", {"key": "open"}))
    assert there == [Skipped(why="output")]


def _listed(root: int, path: str, uri: str) -> Listed:
    return Listed(root=root, path=path, uri=uri, form="audio", is_named=True)


def test_a_pipe_is_no_root(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ManifestError, match=r"pipe: is there, but neither a file nor a folder"):
        recordings.require_root(str(tmp_path / "pipe"))


def test_of_two_roots_with_one_path_the_later_has_its_roots_name_in_front(tmp_path: Path) -> None:
    write(tmp_path / "1", "r.wav", "day2/r.wav", "s.wav")
    write(tmp_path / "2" / "day2", "r.wav", "t.wav")
    write(tmp_path / "3" / "day3", "r.wav", "s.wav")
    write(tmp_path / "4" / "day3", "s.wav")
    roots = ["1", "2/day2/*.wav", "3/day3", "4/day3", "1/*.wav"]

    def paths(*numbers: int) -> dict[str, str]:
        asked = Recordings(roots=tuple(f"{tmp_path}/{roots[at]}" for at in numbers), queries=(DOG,))
        rows = [row for row in manifest_of(asked, lambda _: None) if isinstance(row, ManifestRow)]
        uris = {row.id.removesuffix("/dog"): row.mixture_uri or "" for row in rows}
        assert len(rows) == len(uris)
        return {path: uri.removeprefix(f"{tmp_path}/") for path, uri in uris.items()}

    first = {"r": "1/r.wav", "s": "1/s.wav", "day2/r": "1/day2/r.wav"}
    assert paths(0) == first
    found = paths(0, 1, 2, 3, 4)
    # What one root alone is called it is called beside others too.
    assert found.items() >= first.items()
    assert found.items() >= {"t": "2/day2/t.wav", "day3/r": "3/day3/r.wav"}.items()
    assert found["day3/s"] == "3/day3/s.wav"
    # What lies in a folder and in one of its own is one file.
    asked = Recordings(roots=(f"{tmp_path}/1/day2", f"{tmp_path}/1"), queries=(DOG,))
    nested = [row.id for row in manifest_of(asked, lambda _: None) if isinstance(row, ManifestRow)]
    assert nested == ["r/dog", "1/r/dog", "s/dog"]
    others = {path: uri for path, uri in found.items() if re.search(r"_[0-9a-f]{8}/", path)}
    assert sorted(others.values()) == ["2/day2/r.wav", "4/day3/s.wav"]
    assert len(found) == 8
    assert {path.partition("_")[0] for path in others} == {"day2", "day3"}


@pytest.mark.parametrize(
    ("root", "name"),
    [
        ("/a/day1", "day1"), ("gs://b/x/**/*.wav", "x"), ("gs://b", "b"),
        ("/a/talks/t.wav", "talks"), ("gs://*/x", "recordings"), ("/a/s.tar.gz", "a"),
    ],
)  # fmt: skip
def test_root_names(root: str, name: str) -> None:
    assert root_name(root) == name


def test_rows_of_a_recording() -> None:
    queries = (DOG, NamedQuery(name="loud", fields={"positive_text": "x", "label": "noise"}))
    recording = Recording(path="a/b", uri="gs://c/a/b.wav", listed_in="gs://c/a/b.wav")
    first, second = rows_of(recording, queries)
    assert isinstance(first, ManifestRow)
    assert isinstance(second, ManifestRow)
    assert (first.id, first.mixture_uri, first.label) == ("a/b/dog", "gs://c/a/b.wav", "dog")
    assert (second.id, second.label, second.group) == ("a/b/loud", "noise", "a/b")
    (error,) = rows_of(Recording(path="\udcff", uri="/\udcff.wav", listed_in="/x"), (DOG,))
    assert isinstance(error, RowError)


def test_queries_of_flags_and_of_a_table(tmp_path: Path) -> None:
    table = tmp_path / "q.csv"
    table.write_text(
        "# a note\nname,positive_text,negative_text,positive_audio_uris,text_weight\n"
        "bird,a bird,wind,clips/a.wav;b.wav#t=1,0.25\nfar voices,,,c.wav,NA\n",
        encoding="utf-8",
    )
    bird, voices = read_queries(str(table))
    assert bird.fields == {
        "positive_text": "a bird",
        "negative_text": "wind",
        "positive_audio_uris": [f"{tmp_path}/clips/a.wav", f"{tmp_path}/b.wav#t=1"],
        "text_weight": 0.25,
    }
    assert voices.fields == {"positive_audio_uris": [f"{tmp_path}/c.wav"]}
    together = queries_of(texts=["a dog"], negative="others", uri=str(table))
    assert [query.name for query in together] == ["a_dog", "bird", "far voices"]
    assert [query.fields.get("negative_text") for query in together] == [
        "a bird",
        "wind",
        "a dog and a bird",
    ]
    plain = queries_of(negative="rain", uri=str(table))
    assert [query.fields.get("negative_text") for query in plain] == ["wind", "rain"]


def test_no_query_is_to_suppress_what_it_asks_for(tmp_path: Path) -> None:
    found = queries_of(texts=["a dog", "A  dog!", "rain"], negative="others")
    assert [each.fields["negative_text"] for each in found] == ["rain", "rain", "a dog"]
    with pytest.raises(ValueError, match="it has no others"):
        queries_of(texts=["dog", "Dog"], negative="others")
    table = tmp_path / "q.csv"
    table.write_text(
        "name,positive_text,positive_audio_uris,negative_audio_uris\n"
        "near,dog,a.wav,\nfar,dog,b.wav,\nrain,rain,,\nbird,bird,,wind.wav\n",
        encoding="utf-8",
    )
    found = queries_of(negative="others", uri=str(table))
    texts = ["rain and bird", "rain and bird", "dog and bird", None]
    assert [each.fields.get("negative_text") for each in found] == texts


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,positive_text\n", "has no queries"),
        ("id,positive_text\na,b\n", "no column name"),
        ("name;positive_text\na;b\n", "separated by semicolons"),
        ("name,positive_txt\na,b\n", "is it positive_text?"),
        ("name,positive_text,mixture_uri\na,b,c\n", "it is no field of a query"),
        ("name,positive_text\n,b\n", "expected a name"),
        ("name,positive_text,negative_text\na,,\n", "a query: at least one of"),
        ("name,positive_text,text_weight\na,b,7\n", "from 0 to 1"),
        ('name,positive_audio_uris\na,"b#t=2,1"\n', "ends before it begins"),
    ],
)
def test_a_table_that_is_none_of_queries_is_refused_with_the_place(
    tmp_path: Path, text: str, message: str
) -> None:
    table = tmp_path / "q.csv"
    table.write_text(text, encoding="utf-8")
    with pytest.raises(ManifestError, match=r"q\.csv") as refused:
        list(read_queries(str(table)))
    assert message in str(refused.value)


def test_a_weight_that_no_query_would_take_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "queries.csv"
    table.write_text("name,positive_text\na,dog\n", encoding="utf-8")
    with pytest.raises(ValueError, match="--text_weight goes with --positive_audio"):
        queries_of(uri=str(table), text_weight=0.5)


def test_queries_number_a_thousand_at_most() -> None:
    texts = [f"sound {number}" for number in range(1_001)]
    assert len(queries_of(texts=texts[1:])) == 1_000
    with pytest.raises(ValueError, match="1001 queries; expected at most 1000"):
        queries_of(texts=texts)


def test_names_of_queries_are_unique(tmp_path: Path) -> None:
    table = tmp_path / "q.jsonl"
    table.write_text('{"name": "a_dog", "positive_text": "x"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="'a_dog' is another query's"):
        queries_of(texts=["a dog"], uri=str(table))


def test_queries_without_words_are_named_after_their_clips() -> None:
    (query,) = queries_of(positive_audio_uris=["gs://b/Great Tit 2.wav", "/x.wav"])
    assert query.name == "great_tit_2"
    (query,) = queries_of(negative="Rain!")
    assert (query.name, query.fields) == ("without_rain", {"negative_text": "Rain!"})


def test_the_template_is_a_table_of_queries(tmp_path: Path, capsys) -> None:
    assert example.run(["--queries"]) == 0
    table = tmp_path / "my.csv"
    table.write_text(text := capsys.readouterr().out, encoding="utf-8")
    assert [query.name for query in read_queries(str(table))] == ["dog", "voices", "wren", "siren"]
    assert all(f"\n# {name} (" in text for name in ("name", *recordings.QUERY_FIELDS))


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_the_printed_manifest_means_the_same(tmp_path: Path, capsys, form: str) -> None:
    write(tmp_path / "in", "a;b.wav", 'say "x".flac', "sub/ä, ö.wav", "c.txt")
    words = ["--recordings", str(tmp_path / "in"), "--positive", "a dog, far", "--positive", "rain"]
    words += [
        "--negative",
        "others",
        "--positive_audio",
        f"{tmp_path}/b.wav#t=1,2",
        "--format",
        form,
    ]
    assert recordings.run(words) == 0
    printed = capsys.readouterr()
    assert "passed over: 1 no recording by its name" in printed.err
    manifest = tmp_path / f"m.{form}"
    manifest.write_text(printed.out, encoding="utf-8")
    queries = queries_of(
        texts=["a dog, far", "rain"],
        negative="others",
        positive_audio_uris=[f"{tmp_path}/b.wav#t=1,2"],
    )
    asked = Recordings(roots=(str(tmp_path / "in"),), queries=queries)
    rows = list(manifest_of(asked, lambda _: None))
    assert list(iter_rows(str(manifest))) == rows
    assert len(rows) == 6


def test_wrong_usage_of_the_command(tmp_path: Path, capsys) -> None:
    assert recordings.run(["--recordings", str(tmp_path / "no"), "--positive", "x"]) == 2
    assert "no such file or folder" in capsys.readouterr().err
    assert recordings.run(["--recordings", str(tmp_path)]) == 2
    assert "at least one query" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        recordings.run(["--positive", "x"])
