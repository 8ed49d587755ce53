"""Which clips and words a plan has."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from model.training.material import BUNDLED_CAPTIONS, Material, PreparationSettings, prepare


def prepared(corpus: Path, teacher: Path, **settings: int) -> Material:
    def latents(texts: Sequence[str]) -> npt.NDArray[np.float32]:
        return np.ones((len(texts), 384), dtype=np.float32)

    chosen = PreparationSettings(pairs=5, triples=5, **settings)
    return prepare([corpus], teacher, BUNDLED_CAPTIONS, latents, chosen)


def test_every_clip_has_its_class_caption_and_logits(
    material: Material, teacher_file: Path
) -> None:
    assert len(material.path) == 16
    assert sorted(material.class_names.tolist()) == ["hiss", "horn", "hum", "whistle"]
    heard = np.load(teacher_file)
    for clip, path in enumerate(material.path.tolist()):
        label = path.split("/")[1].split("-")[0]
        assert material.class_names[material.class_of[clip]] == label
        row = heard["path"].tolist().index(path)
        np.testing.assert_array_equal(material.logits[clip], heard["logits"][row])
        np.testing.assert_allclose(material.scores[clip], 1 / (1 + np.exp(-heard["logits"][row])))
    captions = np.unique(material.caption_of)
    assert len(captions) == 4
    numbers = [material.wordings[:, 1], material.tagger_names, material.caption_of,
               material.pair_texts, material.triple_texts]  # fmt: skip
    used = {number for each in numbers for number in each.ravel().tolist()}
    assert used == set(range(len(material.latents)))


def test_compounds_name_different_classes(material: Material) -> None:
    for size, expected in ((2, 20), (3, 10)):
        found = material.compounds(size)
        assert len(found) == expected
        assert all(len(set(classes)) == size for classes, _ in found)


def test_a_plan_survives_its_file(material: Material, tmp_path: Path) -> None:
    material.save(tmp_path / "plan.npz")
    again = Material.load(tmp_path / "plan.npz")
    for field in dataclasses.fields(material):
        np.testing.assert_array_equal(getattr(material, field.name), getattr(again, field.name))


def test_clips_that_the_teacher_contradicts_are_left_out(
    corpus_folder: Path, teacher_file: Path, tmp_path: Path
) -> None:
    heard = dict(np.load(teacher_file))
    rank = np.zeros(len(heard["path"]), dtype=np.int64)
    wrong = heard["path"].tolist().index("corpus/hum-0.flac")
    held_out = heard["path"].tolist().index("corpus/hum-2.flac")
    rank[[wrong, held_out]] = 60
    np.savez(tmp_path / "teacher.npz", rank=rank, **heard)
    found = prepared(corpus_folder, tmp_path / "teacher.npz").path.tolist()
    assert "corpus/hum-0.flac" not in found
    assert "corpus/hum-2.flac" in found  # validation is on all of it
    rank[:] = 60
    np.savez(tmp_path / "teacher.npz", rank=rank, **heard)
    with pytest.raises(ValueError, match=r"'train'; .* teacher file gives a rank from 60"):
        prepared(corpus_folder, tmp_path / "teacher.npz")


def test_a_teacher_that_lacks_a_clip_is_refused(
    corpus_folder: Path, teacher_file: Path, tmp_path: Path
) -> None:
    heard = {name: value[1:] for name, value in np.load(teacher_file).items() if name != "classes"}
    np.savez(tmp_path / "teacher.npz", classes=np.load(teacher_file)["classes"], **heard)
    with pytest.raises(ValueError, match=r"1 clips are not in it, corpus/hiss-0\.flac first"):
        prepared(corpus_folder, tmp_path / "teacher.npz")


def test_a_teacher_file_without_logits_is_refused(corpus_folder: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "teacher.npz", path=np.array(["a"]))
    with pytest.raises(ValueError, match="'classes', 'logits', 'embedding'"):
        prepared(corpus_folder, tmp_path / "teacher.npz")


def _edited(corpus: Path, folder: Path, change: Callable[[dict[str, str]], object]) -> Path:
    """The corpus's manifest with changed rows, as a spreadsheet saves it."""
    with (corpus / "manifest.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        change(row)
    edited = folder / corpus.name
    edited.mkdir()
    with (edited / "manifest.csv").open("w", newline="", encoding="utf-8-sig") as stream:
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return edited


def test_a_clip_without_a_group_is_a_recording_of_its_own(
    corpus_folder: Path, teacher_file: Path, tmp_path: Path
) -> None:
    edited = _edited(corpus_folder, tmp_path, lambda row: row.pop("group"))
    found = prepared(edited, teacher_file)
    assert found.group.tolist() == found.path.tolist()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"caption": ""}, "the row of 'hum-0.flac' has no caption"),
        ({"split": "train"}, "clips of 0 labels have the split 'val'; expected 2 or more"),
        ({"split": "test"}, "clips of 0 labels have the split 'train'; expected 2 or more"),
        ({"label": "open"}, "clips of 0 labels have the split 'train'; expected 2 or more"),
    ],
)
def test_rows_that_nothing_can_be_trained_of_are_refused(
    change: dict[str, str], said: str, corpus_folder: Path, teacher_file: Path, tmp_path: Path
) -> None:
    edited = _edited(corpus_folder, tmp_path, lambda row: row.update(change))
    with pytest.raises(ValueError, match=said):
        prepared(edited, teacher_file)


def test_two_corpora_of_one_name_are_refused(
    corpus_folder: Path, teacher_file: Path, tmp_path: Path, material: Material
) -> None:
    """A plan would take the clips of one for those of the other."""
    other = _edited(corpus_folder, tmp_path, lambda row: row)
    with pytest.raises(ValueError, match="rename one of them"):
        prepare([corpus_folder, other], teacher_file, BUNDLED_CAPTIONS, len, PreparationSettings())
    with pytest.raises(ValueError, match="rename one of them"):
        material.files_in([corpus_folder, other])


def test_a_recording_gives_so_many_training_clips_of_a_label_at_most(
    corpus_folder: Path, teacher_file: Path, tmp_path: Path
) -> None:
    edited = _edited(corpus_folder, tmp_path, lambda row: row.update(group="one"))
    for most in (1, 2):
        found = prepared(edited, teacher_file, clips_per_recording=most)
        assert len(found.clips_of("train")) == 4 * most
        assert len(found.clips_of("val")) == 8
