"""What is found in shards, what it is called there, and what is wrong with them."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

import archives
from manifests.files import ManifestError, split_fragment
from manifests.recordings import list_root
from manifests.row import RowError
from manifests.shards import (
    Broken,
    Listed,
    Recording,
    Skipped,
    audio_column_of,
    index,
    parquet_rows,
    place_in_copy,
    write_recordings,
)

SHARD_ERROR = "broken_shard"


def found(path: str | Path, column: str | None = None) -> tuple[list[Any], dict[str, int]]:
    """What a shard holds, and what is passed over in it."""
    results, skipped = [], Counter[str]()
    for listed in list_root(0, str(path)):
        assert isinstance(listed, Listed)
        for each in index(listed, lambda uri: open(uri, "rb"), column):  # noqa: SIM115
            if isinstance(each, Skipped):
                skipped[each.why] += each.count
            else:
                results.append(each)
    return results, dict(skipped)


def names(results: list[Any]) -> list[str]:
    return [each.path for each in results]


def test_a_sample_is_called_as_webdataset_calls_it(tmp_path: Path) -> None:
    members = [
        ("a/b.wav", b"1"), ("a/b.json", b"{}"), ("c.mono.FLAC", b"22"), ("README", b"x"),
        ("2024.01.05_rec.wav", b"3"), ("2024.01.06_rec.wav", b"4"), ("d.wav", b""), ("d.ogg", b"5"),
        ("d.txt", b"t"), ("._e.wav", b"6"), ("x/.f/g.wav", b"7"),
    ]  # fmt: skip
    shard = archives.write_tar(tmp_path / "s" / "train-0.tar", members)
    results, skipped = found(shard)
    assert names(results) == [
        *("train-0/a/b", "train-0/c", "train-0/2024/01.05_rec", "train-0/2024/01.06_rec"),
        *("train-0/d/wav", "train-0/d/ogg"),
    ]
    assert skipped == {"not_audio": 3, "hidden": 2}
    data = shard.read_bytes()
    for each in results:
        member = split_fragment(each.uri)[1].member
        assert dict(members)[member or ""] == data[each.place.start : each.place.stop]
    # A key of ours is webdataset's, but for what we tell apart within a sample.
    keys = [sample["__key__"] for sample in webdataset.WebDataset(str(shard), shardshuffle=False)]
    assert {name.split("/", 1)[1] for name in names(results)[:2]} <= set(keys)


def test_leading_dots_and_odd_names(tmp_path: Path) -> None:
    members = [("./a.wav", b"1"), ("./b c#d&e.wav", b"2"), ("ü;ä.wav", b"3"), ("n\udcff.wav", b"4")]
    results, _ = found(archives.write_tar(tmp_path / "t.tar", members))
    assert names(results) == ["t/a", "t/b c#d&e", "t/ü;ä", "t/n\udcff"]
    assert [split_fragment(each.uri)[1].member for each in results] == [n for n, _ in members]


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_every_kind_of_tar_and_what_is_no_file_in_it(tmp_path: Path, form: int) -> None:
    shard = tmp_path / "t.tar"
    name = "d" * 90 + "/" + "n" * 90 + ".wav"
    with tarfile.open(shard, "w", format=form) as tar:
        for kind, called in ((tarfile.DIRTYPE, "d"), (tarfile.SYMTYPE, "l.wav")):
            info = tarfile.TarInfo(called)
            info.type, info.linkname = kind, "x.wav"
            tar.addfile(info)
        info = tarfile.TarInfo(name)
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    results, skipped = found(shard)
    assert names(results) == [f"t/{name.removesuffix('.wav')}"]
    assert skipped == {"not_a_file": 1}


def test_neighbours_come_in_runs(tmp_path: Path) -> None:
    members = [(f"{number:04}.wav", b"x") for number in range(600)]
    results, _ = found(archives.write_tar(tmp_path / "t.tar", members))
    assert [each.place.run for each in results] == [number // 256 for number in range(600)]
    packed, _ = found(archives.write_tar(tmp_path / "p.tar.gz", members, "w:gz"))
    assert {each.place.run for each in packed} == {0}
    assert [each.place.start for each in packed] == [each.place.start for each in results]


def _damaged(data: bytes, how: str) -> bytes:
    second = 1024
    if how == "cut in a header":
        return data[: second + 100]
    if how == "cut in a member":
        return data[: second + 700]
    if how == "garbage for a header":
        return data[:second] + b"\xa5" * 512 + data[second + 512 :]
    if how == "one bit of a header":
        return data[: second + 10] + b"?" + data[second + 11 :]
    huge = bytearray(data)  # a header of 8 GiB
    huge[second : second + 512] = tarfile.TarInfo("x").tobuf()
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, 8 << 30
    huge[second : second + 512] = info.tobuf(tarfile.GNU_FORMAT)
    return bytes(huge)


@pytest.mark.parametrize(
    "how",
    [
        "cut in a header", "cut in a member", "garbage for a header", "one bit of a header",
        "a header of many bytes",
    ],
)  # fmt: skip
@pytest.mark.parametrize("packed", [False, True])
def test_what_stands_before_the_damage_is_found(tmp_path: Path, how: str, packed: bool) -> None:
    members = [(f"{name}.wav", name.encode() * 300) for name in "abcd"]
    data = _damaged(archives.write_tar(tmp_path / "t.tar", members).read_bytes(), how)
    shard = tmp_path / ("b.tar.gz" if packed else "b.tar")
    shard.write_bytes(gzip.compress(data) if packed else data)
    results, _ = found(shard)
    *whole, broken = results
    assert isinstance(broken, Broken)
    assert (broken.code, broken.uri) == (SHARD_ERROR, str(shard))
    assert names(whole)[:1] == ["b/a"]
    assert "b/c" not in names(whole)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.tar", b""), ("a.tar", b"no tar at all" * 99), ("a.tar.gz", b"no gzip"),
        ("a.parquet", b"PAR1 and no more"), ("a.parquet", b""),
    ],
)  # fmt: skip
def test_what_is_no_shard_is_said_once(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    ((broken,), skipped) = found(tmp_path / name)
    assert (broken.code, skipped) == (SHARD_ERROR, {})
    assert name in broken.message


def test_rows_of_parquet(tmp_path: Path) -> None:
    schema = archives.hugging_face_schema(text=pa.string(), audio=archives.HF_AUDIO)
    rows = [
        {"text": str(at), "audio": {"bytes": bytes([at]), "path": f"{at}.wav"}} for at in range(7)
    ]
    shard = archives.write_parquet(tmp_path / "train-0.parquet", rows, schema, group=3)
    results, _ = found(shard)
    assert names(results) == [f"train-0/{at}" for at in range(7)]
    assert [each.uri for each in results][6] == f"{shard}#row=6"
    assert [each.place.run for each in results] == [0, 0, 0, 1, 1, 1, 2]
    assert [(each.place.start, each.place.stop) for each in results][4] == (4, 5)
    with shard.open("rb") as stream:
        where = parquet_rows(stream, None)
    assert (where.leaf, where.num_rows) == ("audio.bytes", 7)
    copy = io.BytesIO()
    with shard.open("rb") as stream:
        write_recordings(stream, where.place_of(4)[0], where.leaf, copy)
    start, stop = place_in_copy(copy, where.place_of(4)[1]) or (0, 0)
    assert copy.getvalue()[start:stop] == b"\x04"


@pytest.mark.parametrize("group", [2, 100])
def test_rows_with_a_path_only_name_files(tmp_path: Path, group: int) -> None:
    schema = archives.hugging_face_schema(audio=archives.HF_AUDIO)
    rows = [
        {"audio": {"bytes": None, "path": "/abs/a.wav"}},
        {"audio": {"bytes": None, "path": "b.wav"}},
        {"audio": {"bytes": b"x", "path": "c.wav"}},
        {"audio": {"bytes": None, "path": None}},
        {"audio": None},
        {"audio": {"bytes": None, "path": "http://h/d.wav"}},
    ]
    shard = archives.write_parquet(tmp_path / "p.parquet", rows, schema, group)
    results, _ = found(shard)
    assert [each.uri for each in results if isinstance(each, Recording)] == [
        *("/abs/a.wav", f"{tmp_path}/b.wav", f"{shard}#row=2", "http://h/d.wav"),
    ]
    errors = [each for each in results if isinstance(each, RowError)]
    assert [error.row for error in errors] == [3, 4]


def test_the_column_of_audio(tmp_path: Path) -> None:
    def column(schema: pa.Schema, wanted: str | None = None) -> Any:
        return audio_column_of(schema, wanted)

    struct = archives.HF_AUDIO
    declared = archives.hugging_face_schema(audio=struct, other=pa.string())
    assert column(declared).data == "audio.bytes"
    plain = pa.schema([("id", pa.int64()), ("wav", struct)])
    assert column(plain).name == "wav"
    raw = pa.schema([("data", pa.large_binary()), ("file", pa.string())])
    assert column(raw) is None
    assert (column(raw, "data").data, column(raw, "file").path) == ("data", "file")
    two = archives.hugging_face_schema(noisy=struct, clean=struct)
    with pytest.raises(ManifestError, match="noisy, clean; name one with --audio_column"):
        column(two)
    assert column(two, "clean").data == "clean.bytes"
    with pytest.raises(ManifestError, match="no column nothing of audio; the columns are id, wav"):
        column(plain, "nothing")
    with pytest.raises(ManifestError, match="column id has the type int64; expected bytes"):
        column(plain, "id")
    path = archives.write_parquet(
        tmp_path / "d" / "t.parquet", [{"id": 1}], pa.schema([("id", "i8")])
    )
    assert found(path.parent) == ([], {"no_audio_column": 1})
    ((broken,), _) = found(path)
    assert "no column of audio among id" in broken.message
    named = archives.write_parquet(
        tmp_path / "n.parquet", [{"a&b": b"x"}], pa.schema([("a&b", "binary")])
    )
    ((recording,), _) = found(named, "a&b")
    assert split_fragment(recording.uri)[1].column == "a&b"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (pa.binary(), pa.dictionary(pa.int32(), pa.string())),
        (pa.large_binary(), pa.large_string()),
        (pa.binary_view(), pa.string_view()),
        (pa.binary(1), pa.string()),
    ],
)
def test_types_in_which_writers_keep_bytes_and_paths(
    tmp_path: Path, data: pa.DataType, text: pa.DataType
) -> None:
    values, paths = pa.array([b"1", b"2"], data), pa.array(["a.wav", "b.wav"])
    paths = paths.dictionary_encode() if pa.types.is_dictionary(text) else paths.cast(text)
    audio = pa.StructArray.from_arrays([values, paths], ["bytes", "path"])
    shard = tmp_path / "t.parquet"
    pq.write_table(pa.table({"audio": audio, "path": paths, "data": values}), shard)
    for column in (None, "audio", "data"):
        assert names(found(shard, column)[0]) == ["t/0", "t/1"]
        with open(shard, "rb") as stream, open(tmp_path / "copy", "w+b") as copy:
            write_recordings(stream, 0, parquet_rows(stream, column).leaf, copy)
            start, stop = place_in_copy(copy, 1)
            copy.seek(start)
            assert copy.read(stop - start) == b"2"
    named = [each.uri for each in found(shard, "path")[0]]
    assert named == [str(tmp_path / "a.wav"), str(tmp_path / "b.wav")]


def test_lists_of_nemo(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    path.write_text(
        '{"audio_filepath": "a.wav", "duration": 2.5, "offset": 0.5, "text": "x"}\n\n'
        '{"audio_filepath": "gs://b/c.flac", "duration": 3, "offset": 0.0}\n'
        '{"audio": "d.wav"}\n{"audio_filepath": "e.wav", "offset": "late"}\nno json\n',
        encoding="utf-8",
    )
    results, _ = found(path)
    first, second, *errors = results
    assert (first.path, first.uri) == ("train/1", f"{tmp_path}/a.wav")
    assert (first.offset_s, first.duration_s) == (0.5, 2.5)
    assert (second.path, second.uri) == ("train/3", "gs://b/c.flac")
    assert (second.offset_s, second.duration_s) == (None, 3)
    assert [error.row for error in errors] == [4, 5, 6]


def test_a_byte_order_mark_is_no_part_of_an_utterance(tmp_path: Path) -> None:
    path = tmp_path / "wav.scp"
    path.write_text("one a.wav\n", encoding="utf-8-sig")
    ((recording,), _) = found(path)
    assert recording.path == "wav/one"
    path.write_text("one a.wav\n", encoding="utf-16")
    ((broken,), _) = found(path)
    assert isinstance(broken, Broken)
    assert "UTF-16" in broken.message


def test_lists_of_kaldi(tmp_path: Path) -> None:
    path = tmp_path / "wav.scp"
    path.write_text(
        "utt.1 a b.wav\nutt2 sph2pipe -f wav x.sph |\nutt3\n\nutt4 feats.ark:17\nutt5 /x/y.flac\n",
        encoding="utf-8",
    )
    results, _ = found(path)
    assert [each.path for each in results if isinstance(each, Recording)] == [
        "wav/utt.1",
        "wav/utt5",
    ]
    assert results[0].uri == f"{tmp_path}/a b.wav"
    errors = [each for each in results if isinstance(each, RowError)]
    assert [error.row for error in errors] == [2, 3, 5]
    assert "commands are not run" in str(errors[0])


@pytest.mark.parametrize("behind", [0, 512, 30_720])
@pytest.mark.parametrize("packed", [False, True])
def test_tars_that_were_joined_are_all_read(tmp_path: Path, behind: int, packed: bool) -> None:
    for number in range(3):
        archives.write_tar(tmp_path / f"{number}.tar", [(f"{number}.wav", b"%d" % number)])
    whole = b"".join((tmp_path / f"{n}.tar").read_bytes() + bytes(behind) for n in range(3))
    shard = tmp_path / "s" / ("joined.tar.gz" if packed else "joined.tar")
    shard.parent.mkdir()
    shard.write_bytes(gzip.compress(whole) if packed else whole)
    results, skipped = found(shard)
    assert names(results) == ["joined/0", "joined/1", "joined/2"]
    assert skipped == {}
    for number, each in enumerate(results):
        assert whole[each.place.start : each.place.stop] == b"%d" % number


def test_what_is_left_behind_the_end_of_a_tar_is_no_damage(tmp_path: Path) -> None:
    shard = archives.write_tar(tmp_path / "s.tar", [("a.wav", b"1")])
    shard.write_bytes(shard.read_bytes() + b"not a header" * 100)
    results, _ = found(shard)
    assert names(results) == ["s/a"]


def test_a_sparse_recording_in_a_tar_is_counted_as_such(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.wav")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a"}
    info.size = 512
    with tarfile.open(tmp_path / "s.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(b"0\n" + bytes(510)))
    assert found(tmp_path / "s.tar") == ([], {"sparse": 1})
