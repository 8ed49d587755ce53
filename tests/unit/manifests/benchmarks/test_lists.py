from __future__ import annotations

import pytest

from manifests.benchmarks.lists import Pair, read_pairs, read_samples, read_table
from manifests.files import ManifestError

HEADER = "source_file,positive_caption,noise_file,negative_caption\n"


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def test_pairs_of_the_official_format(tmp_path):
    uri = write(tmp_path / "p.csv", "\ufeff" + HEADER + 'a.wav, "x, y",b.wav, z \r\n\r\nc,d,e,f')
    assert read_pairs(uri) == [
        Pair(
            source_file="a.wav", positive_caption="x, y", noise_file="b.wav", negative_caption="z"
        ),
        Pair(source_file="c", positive_caption="d", noise_file="e", negative_caption="f"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n", "no column source_file"),
        ("", "no column source_file"),
        (HEADER + "a,b,c\n", "row 2: 3 cells; expected 4"),
        (HEADER + "a,b,c,d\n\na,,c,d\n", "row 4: positive_caption is empty"),
        (HEADER + "a,b,a,d\n", "row 2: a is its own interferer"),
        (HEADER + 'a,b,c,"d', "unexpected end of data"),
        (HEADER.encode() + b"a,\xe9,c,d\n", "not UTF-8"),
    ],
)
def test_a_list_that_is_not_one_says_where(tmp_path, text, message):
    uri = write(tmp_path / "p.csv", text)
    with pytest.raises(ManifestError, match=message) as caught:
        read_pairs(uri)
    assert str(caught.value).startswith(uri)


def test_missing_list(tmp_path):
    with pytest.raises(ManifestError, match="no such file"):
        read_pairs(str(tmp_path / "none.csv"))


def test_samples_in_both_notations(tmp_path):
    uri = write(tmp_path / "s.csv", 'class,file\nx,"[\'a.wav\', ""b\'s.wav""]"\ny,c.wav; d.wav;\n')
    assert read_samples(uri) == {"x": ("a.wav", "b's.wav"), "y": ("c.wav", "d.wav")}


@pytest.mark.parametrize(
    "cell", ["[]", "[1]", "['a'", "[__import__('os')]", "[['a']]", "['']", "[" * 5000]
)
def test_samples_that_are_no_list_of_names(tmp_path, cell):
    uri = write(tmp_path / "s.csv", f'class,file\nx,"{cell}"\n')
    with pytest.raises(ManifestError, match=r"row 2: .*expected one list of clips"):
        read_samples(uri)


def test_samples_of_a_class_twice(tmp_path):
    uri = write(tmp_path / "s.csv", "class,file\nx,a\nx,b\n")
    with pytest.raises(ManifestError, match="row 3"):
        read_samples(uri)


def test_a_column_that_occurs_twice_has_its_first_value(tmp_path):
    uri = write(tmp_path / "t.csv", "idx,noise,noise\n0,a,b\n")
    (line,) = read_table(uri, ("idx",))
    assert (line.row, line.cells) == (2, {"idx": "0", "noise": "a"})
