"""Mixes, separates and scores rows: every mixture is heard once, whatever is asked of it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from model.evaluation.queries import EmbeddedQueries
from model.evaluation.rows import EvaluationRow, Query, Sources
from model.signal import fit_length, resample
from model.signal.levels import input_gain
from model.signal.mixing import mix
from model.signal.windowing import OverlapAdder, WindowPlan
from model.systems import Separator
from model.training.corpus import Corpus

FloatArray = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answer:
    """One row's waveforms, float32[T] at the model's rate."""

    row: EvaluationRow
    mixture: FloatArray
    reference: FloatArray
    stem: FloatArray


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Mixed:
    """A mixture, its parts as they sound in it, and the distinct queries that rows ask of it."""

    mixture: FloatArray
    parts: tuple[FloatArray, ...]
    rows: tuple[EvaluationRow, ...]
    queries: tuple[Query, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Piece:
    """A window of the mixture of that number in its batch, and the gain it is heard with."""

    number: int
    start: int
    samples: FloatArray
    gain: np.float32


class Runner:
    """Runs rows. It keeps no state between calls: threads may share one."""

    def __init__(
        self,
        separator: Separator,
        queries: EmbeddedQueries,
        corpus: Corpus,
        *,
        duration_s: float = 10.0,
        device: torch.device | str = "cpu",
        mixtures_at_once: int = 4,
        answers_at_once: int = 24,
    ) -> None:
        """Says how.

        Args:
            separator: the system under test.
            queries: what the rows ask for, embedded.
            corpus: the clips.
            duration_s: length of a mixture; sources are cut or zero-padded to it.
            device: where the separator is.
            mixtures_at_once: whose windows share a forward pass of the encoder.
            answers_at_once: windows x queries in one forward pass of the decoder.
        """
        self._separator, self._queries, self._corpus = separator, queries, corpus
        self._num_samples = round(duration_s * separator.sample_rate_hz)
        self._device = torch.device(device)
        self._mixtures_at_once, self._answers_at_once = mixtures_at_once, answers_at_once
        self._index_of = {clip.path: index for index, clip in enumerate(corpus.clips)}

    def batches(self, rows: Sequence[EvaluationRow]) -> list[list[EvaluationRow]]:
        """Rows grouped by their mixtures, as many of them together as are run at once."""
        by_sources: dict[Sources, list[EvaluationRow]] = {}
        for row in rows:
            by_sources.setdefault(row.sources, []).append(row)
        groups = list(by_sources.values())
        return [
            list(itertools.chain(*groups[start : start + self._mixtures_at_once]))
            for start in range(0, len(groups), self._mixtures_at_once)
        ]

    @torch.inference_mode()
    def answer(self, rows: Sequence[EvaluationRow]) -> list[Answer]:
        """Mixes and separates one of the batches; every mixture is heard once."""
        by_sources: dict[Sources, list[EvaluationRow]] = {}
        for row in rows:
            by_sources.setdefault(row.sources, []).append(row)
        mixed = [self._mix(sources, asked) for sources, asked in by_sources.items()]
        stems = self._separate(mixed)
        return [
            answer
            for item, answered in zip(mixed, stems, strict=True)
            for answer in _answers(item, answered)
        ]

    def _mix(self, sources: Sources, rows: Sequence[EvaluationRow]) -> _Mixed:
        source_hz, rate_hz = self._corpus.sample_rate_hz, self._separator.sample_rate_hz
        clips = [self._corpus.audio(self._index_of[path]) for path in sources.paths]
        waveforms = [
            fit_length(resample(clip, source_hz, rate_hz), self._num_samples) for clip in clips
        ]
        mixed = mix(waveforms[0], waveforms[1:], sources.levels_db)
        return _Mixed(
            mixture=mixed.mixture,
            parts=(mixed.target, *mixed.interferers),
            rows=tuple(rows),
            queries=tuple(dict.fromkeys(row.query for row in rows)),
        )

    def _separate(self, mixed: Sequence[_Mixed]) -> list[dict[Query, FloatArray]]:
        """The stem of each mixture's every query."""
        plan = WindowPlan(window_samples=self._separator.window_samples)
        pieces = [
            piece for number, item in enumerate(mixed) for piece in self._pieces(number, item, plan)
        ]
        answers = self._answer_pieces(pieces, mixed)
        stems = []
        for number, item in enumerate(mixed):
            own = [index for index, piece in enumerate(pieces) if piece.number == number]
            stems.append(
                {
                    query: _joined(
                        plan, [(pieces[index].start, answers[index, query]) for index in own]
                    )
                    for query in item.queries
                }
            )
        return stems

    def _pieces(self, number: int, item: _Mixed, plan: WindowPlan) -> Iterator[_Piece]:
        mixture, separator = item.mixture[None], self._separator
        gain = input_gain([mixture], separator.sample_rate_hz, separator.input_level_dbfs)
        for start in plan.starts(mixture.shape[1]):
            window = plan.cut(mixture, start)[0]
            factor = np.float32(gain.at(start, len(window)))
            yield _Piece(number=number, start=start, samples=window, gain=factor)

    def _answer_pieces(
        self, pieces: Sequence[_Piece], mixed: Sequence[_Mixed]
    ) -> dict[tuple[int, Query], FloatArray]:
        """float32[n] for every window and query; digital silence is not given to the network."""
        sounding = [index for index, piece in enumerate(pieces) if piece.samples.any()]
        answers = {
            (index, query): np.zeros_like(piece.samples)
            for index, piece in enumerate(pieces)
            for query in mixed[piece.number].queries
        }
        asked = [
            (row, index, query)
            for row, index in enumerate(sounding)
            for query in mixed[pieces[index].number].queries
        ]
        batch = np.stack([pieces[index].samples * pieces[index].gain for index in sounding])
        encoded = self._separator.encode(torch.from_numpy(batch).to(self._device))
        for start in range(0, len(asked), self._answers_at_once):
            chunk = asked[start : start + self._answers_at_once]
            rows = torch.tensor([row for row, _, _ in chunk], device=self._device)
            condition = self._queries.condition([query for _, _, query in chunk])
            stems = self._separator.answer(encoded.index(rows), condition).float().cpu().numpy()
            answers.update(
                {
                    (index, query): stem / pieces[index].gain
                    for (_, index, query), stem in zip(chunk, stems, strict=True)
                }
            )
        return answers


def _joined(plan: WindowPlan, windows: Iterable[tuple[int, FloatArray]]) -> FloatArray:
    """The stem of one recording, float32[T], from its windows' answers."""
    adder = OverlapAdder(plan, num_channels=1)
    done = [adder.push(samples[None], start) for start, samples in windows]
    stem: FloatArray = np.concatenate([*done, adder.flush()], axis=1)[0]
    return stem


def _answers(item: _Mixed, stems: Mapping[Query, FloatArray]) -> Iterator[Answer]:
    for row in item.rows:
        targets = item.parts[: row.num_targets]
        yield Answer(
            row=row,
            mixture=item.mixture,
            reference=np.sum(targets, axis=0, dtype=np.float64).astype(np.float32),
            stem=stems[row.query],
        )
