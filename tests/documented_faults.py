"""The faults that docs/errors.md and docs/reliability.md tell of, made for real in a few jobs.

All rows that one job can take are done in one run of it: a row that fails disturbs no other.
"""

from __future__ import annotations

import dataclasses
import http.server
import json
import os
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, chdir, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import tenacity.nap
import torch

import faulty_storage
import hostile_rows
import tone_runs
import tones
from faulty_storage import FaultyFileSystem
from model import inference
from model.clap import UnknownWordsError
from model.systems import Capabilities, Condition
from pipelines import flags, score, separate, synthesize
from transforms.audio import decoding, isolation

GOOD = ""
"""In the place of a code: the row has its stem."""
MARKS = {"out_of_memory": 0.5, "model_error": 0.25, "not_finite": 0.125, "late": 0.0625}
"""First samples of windows over which the network fails, and how."""
_LATE = 12_345.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A row of a manifest that something is wrong with.

    Attributes:
        columns: beside the id; an empty list is a row that is no object.
        job: which of ``JOBS`` does it.
        said: what the message has to name.
        code: what has to come, where the row of the page does not say it alone.
    """

    columns: dict[str, Any]
    job: str = "separate"
    said: str = ""
    code: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """What became of a row: where it failed and how, or nothing of both."""

    stage: str = GOOD
    code: str = GOOD
    message: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a fault led to: codes of dead letters, and exit codes of runs."""

    codes: frozenset[str] = frozenset()
    exits: frozenset[int] = frozenset()


@dataclasses.dataclass(frozen=True, slots=True)
class Elsewhere:
    """Tests that make the fault already, ``file::function`` below tests/."""

    tests: tuple[str, ...]


Case = list[Fault] | Callable[["World", Path], Outcome] | Elsewhere
PLAIN = {"mixture_uri": "plain.wav", "positive_text": "bell"}
MIXED = {"target_uri": "plain.wav", "interferer_uris": ["rain.wav"], "positive_text": "bell"}


def _mixture(uri: str, **columns: Any) -> dict[str, Any]:
    return {**PLAIN, "mixture_uri": uri, **columns}


def _stem(uri: str, code: str, said: str = "") -> Fault:
    place = uri if "/" in uri else f"HERE/{uri}"
    columns = {**PLAIN, "stem_uri": place}
    return Fault(columns=columns, job="score", code=code, said=said or uri.rsplit("/", 1)[-1])


FILES: dict[str, tuple[str, ...]] = {
    "missing": (
        "gone.wav",
        "memory://bucket/gone.wav",
        "faulty://in/404.wav",
        "WEB/allowed/gone",
        "http://127.0.0.1:9/a.wav",
        "zip://gone.wav::HERE/all.zip",
        "tar://gone.wav::HERE/all.tar",
        "all.tar#gone.wav",
    ),
    "broken_shard": ("text.tar#a.wav", "text.parquet#row=0"),
    "audio_column": ("two.parquet#row=0", "two.parquet#row=0&column=other", "no.parquet#row=0"),
    "permission": ("denied://bucket/a.wav", "faulty://in/403.wav"),
    "not_a_file": ("folder.wav", "pipe.wav", "/dev/zero"),
    "disk_full": ("faulty://in/full.wav",),
    "io_error": ("faulty://in/503.wav", "faulty://in/reset.wav", "loop.wav", "nonsense://b/a.wav"),
    "empty_file": ("empty.wav",),
    "not_audio": ("text.wav", "cut.flac", "raises.wav"),
    "truncated": ("cut.wav", "cut.aiff"),
    "zero_duration": ("no samples.wav",),
    "rate": ("999 Hz.wav", "10000001 Hz.wav"),
    "channels": ("nine.wav",),
    "silent": ("silent.wav",),
    "uri_not_allowed": ("WEB/allowed/out",),
}
"""Files that cannot be used, by what is said of them."""


def _read(code: str) -> list[Fault]:
    """A file as a mixture, as a reference and as a source."""
    found = []
    for uri in FILES[code]:
        said = uri.rsplit("/", 1)[-1]
        found.append(Fault(columns=_mixture(uri), said=said))
        if code != "silent":  # a reference may be silent, and a source is told of in another way
            found.append(Fault(columns={**PLAIN, "reference_uri": uri}, said=said))
            found.append(Fault(columns={**MIXED, "interferer_uris": ["rain.wav", uri]}, said=said))
            found.append(Fault(columns={**MIXED, "target_uri": uri}, said=said))
    return found


def _embedded(code: str) -> list[Fault]:
    """A file as an example clip."""
    names = ("positive_audio_uris", "negative_audio_uris")
    return [
        Fault(columns={**PLAIN, name: ["plain.wav", uri]}, said=uri.rsplit("/", 1)[-1])
        for uri in FILES[code]
        for name in names
    ]


ERRORS: dict[tuple[str, str], list[Fault]] = {
    **{(code, "read"): _read(code) for code in FILES},
    **{(code, "embed_queries"): _embedded(code) for code in FILES},
    ("invalid_row", "manifest"): [
        Fault(columns={"mixture_uri": "plain.wav"}, said="positive_text"),
        Fault(columns={"positive_text": "bell"}, said="mixture_uri"),
        Fault(columns={**PLAIN, "offset_s": -1}, said="offset_s"),
        Fault(columns={**PLAIN, "duration_s": "long"}, said="duration_s"),
        Fault(columns={**PLAIN, **MIXED}, said="either mixture_uri or sources"),
    ],
    ("duplicate_id", "manifest"): [Fault(columns=PLAIN, said="stands in an earlier row")],
    ("uri_not_allowed", "manifest"): [
        Fault(columns=_mixture("/etc/passwd"), said="mixture_uri: /etc/passwd"),
        Fault(columns=_mixture("../plain.wav"), said="mixture_uri: "),
        Fault(columns={**PLAIN, "reference_uri": "WEB/secret/clip"}, said="reference_uri: "),
        Fault(columns={**PLAIN, "negative_audio_uris": ["out.wav"]}, said="negative_audio_uris: "),
        Fault(columns=_mixture("simplecache::memory://bucket/a"), said="may stand before ::"),
    ],
    ("own_output", "manifest"): [
        Fault(columns=_mixture("faulty://separate/stems/a.flac"), said="another --output"),
        Fault(
            columns={**PLAIN, "positive_audio_uris": ["faulty://separate/stems/a.tar#b.wav"]},
            said="positive_audio_uris: ",
        ),
        Fault(
            columns={**MIXED, "target_uri": "faulty://synthesize/references/a.flac"},
            job="synthesize",
            said="target_uri: ",
        ),
    ],
    ("permission", "write"): [Fault(columns={**PLAIN, "dataset": "forbidden"}, said="forbidden")],
    ("disk_full", "write"): [Fault(columns={**PLAIN, "dataset": "full"}, said="no space left")],
    ("io_error", "write"): [
        Fault(columns={**PLAIN, "dataset": "broken"}, said="the store answered 503"),
    ],
    ("decoder_crashed", "read"): [
        Fault(columns=_mixture("poison.wav"), job="isolated", said="SIGSEGV")
    ],
    ("decoder_crashed", "embed_queries"): [
        Fault(
            columns={**PLAIN, "positive_audio_uris": ["poison.wav"]}, job="isolated", said="SIGSEGV"
        )
    ],
    ("zero_duration", "read"): [
        *_read("zero_duration"),
        Fault(columns={**PLAIN, "offset_s": 10}, said="past its end"),
        Fault(columns={**PLAIN, "duration_s": 1e-6}, said="less than a sample"),
    ],
    ("not_finite", "read"): [
        Fault(columns=_mixture("nan.wav"), said="nan.wav"),
        Fault(columns=_mixture("inf.wav"), said="inf.wav"),
        Fault(columns={**PLAIN, "reference_uri": "nan.wav"}, said="nan.wav"),
    ],
    ("not_finite", "separate"): [
        Fault(columns=_mixture("not_finite.wav")),
        Fault(columns=_mixture("long not_finite.wav")),
    ],
    ("too_long", "read"): [
        Fault(columns={**MIXED, "target_uri": "long.wav"}, said="--max_clip_in_memory_s"),
        Fault(columns={**MIXED, "duration_s": 1e9}, said="--max_clip_in_memory_s"),
        Fault(columns={**PLAIN, "reference_uri": "long.wav"}, said="--max_clip_in_memory_s"),
    ],
    ("too_long", "embed_queries"): [
        Fault(columns={**PLAIN, "positive_audio_uris": ["long.wav"]}, said="long.wav")
    ],
    ("too_long", "separate"): [
        Fault(columns=_mixture("long.wav", reference_uri="long.wav"), job="oracle")
    ],
    ("reference_length", "read"): [
        Fault(columns={**PLAIN, "reference_uri": "shorter.wav"}, said="shorter.wav"),
        Fault(columns=_mixture("long.wav", reference_uri="plain.wav"), said="plain.wav"),
    ],
    ("cannot_mix", "read"): [
        Fault(columns={**MIXED, "interferer_uris": ["rain.wav", "silent.wav"]}, said="silent.wav"),
        Fault(columns={**MIXED, "target_uri": "silent.wav"}, said="silent.wav"),
        Fault(columns={**MIXED, "interferer_uris": ["late.wav"]}, said="late.wav"),
        Fault(
            columns={**MIXED, "interferer_uris": ["late.wav"], "duration_s": 0.25}, said="late.wav"
        ),
        Fault(
            columns={**MIXED, "target_uris": ["plain.wav", "late.wav"], "target_uri": None},
            said="late.wav",
        ),
        Fault(columns={**MIXED, "interferer_uris": ["opposite.wav"]}, said="opposite.wav"),
        Fault(
            columns={**MIXED, "interferer_uris": ["late.wav"]}, said="late.wav", job="synthesize"
        ),
    ],
    ("no_sources", "read"): [Fault(columns=PLAIN, job="synthesize", said="its sources")],
    ("over_full_scale", "write"): [
        Fault(
            columns={**MIXED, "target_uri": "loud.wav", "interferer_uris": ["loud opposed.wav"]},
            job="synthesize",
            said="--stem_format wav",
        )
    ],
    ("stem_…", "read"): [
        *(_stem(uri, f"stem_{code}") for code in FILES for uri in FILES[code] if code != "silent"),
        _stem("shorter.wav", "stem_reference_length"),
        _stem("out.wav", "stem_uri_not_allowed"),
        _stem("nan.wav", "stem_not_finite"),
        _stem("long.wav", "stem_too_long"),
    ],
    ("unsupported_query", "embed_queries"): [
        Fault(columns={**PLAIN, "negative_text": "rain"}, job="positive", said="negative query"),
        Fault(columns={**PLAIN, "positive_text": "🐶"}, said="'🐶': the text encoder knows"),
    ],
    ("no_reference", "separate"): [Fault(columns=PLAIN, job="oracle", said="reference_uri")],
    ("out_of_memory", "separate"): [
        Fault(columns=_mixture("out_of_memory.wav"), said="one window at a time"),
        Fault(columns=_mixture("long out_of_memory.wav"), said="one window at a time"),
    ],
    ("model_error", "separate"): [
        Fault(columns=_mixture("model_error.wav"), said="shapes do not fit"),
        Fault(columns=_mixture("long model_error.wav"), said="shapes do not fit"),
    ],
    ("model_error", "embed_queries"): [
        Fault(columns={**PLAIN, "positive_text": "unspeakable"}, said="cannot be said"),
        Fault(
            columns={**PLAIN, "positive_audio_uris": ["model_error.wav"]}, said="model_error.wav"
        ),
    ],
}


class FaultyTones(tones.ToneSeparator):
    """Fails over windows that begin with one of ``MARKS``."""

    def encode(self, mixture: torch.Tensor) -> tones.ToneEncoded:
        if (mixture[:, 0] == MARKS["out_of_memory"]).any():
            raise torch.OutOfMemoryError("CUDA out of memory")
        if (mixture[:, 0] == MARKS["model_error"]).any():
            raise RuntimeError("shapes do not fit")
        return super().encode(mixture)

    def decode(self, encoded: tones.ToneEncoded, condition: Condition) -> torch.Tensor:
        found = super().decode(encoded, condition)
        found[encoded.mixture[:, 0] == MARKS["not_finite"]] = torch.nan
        found[encoded.mixture[:, 0] == MARKS["late"]] = _LATE
        return found


class FaultyClap(tones.ToneClap):
    """Cannot embed two texts, nor one clip."""

    def embed_text(self, texts: Any) -> torch.Tensor:
        if "🐶" in texts:
            raise UnknownWordsError("'🐶': the text encoder knows nothing of it")
        if any("unspeakable" in text for text in texts):
            raise RuntimeError("it cannot be said")
        return super().embed_text(texts)

    def embed_audio(self, clips: Any) -> torch.Tensor:
        if any(clip[0] == MARKS["model_error"] for clip in clips):
            raise RuntimeError("shapes do not fit")
        return super().embed_audio(clips)


class _Handler(http.server.BaseHTTPRequestHandler):
    clip = b""

    def do_GET(self) -> None:
        content = self.clip if self.path == "/allowed/clip" else b""
        status = 404 if self.path == "/allowed/gone" else 200
        self.send_response(302 if self.path == "/allowed/out" else status)
        if self.path == "/allowed/out":
            self.send_header("Location", "/secret/clip")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@contextmanager
def _web() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def _write_files(folder: Path) -> None:
    """Every file that a fault names, and those that are in order."""
    folder.mkdir(parents=True)
    rate = tones.RATE_HZ
    bell, rain = tones.tone("bell", 0.5), tones.tone("rain", 0.5)
    half = np.zeros(rate // 2, np.float32)
    mark = {name: np.concatenate([[np.float32(mark)], bell[1:]]) for name, mark in MARKS.items()}
    bad = {name: np.where(np.arange(rate // 2) == 9, value, bell) for name, value in
           (("nan", np.nan), ("inf", np.inf))}  # fmt: skip
    sounds = {
        "plain": bell,
        "rain": rain,
        "shorter": tones.tone("bell", 0.3),
        "no samples": half[:0],
        "silent": half,
        "late": np.concatenate([half, bell]),
        "opposite": np.stack([bell, -bell], axis=1),
        "nine": np.repeat(bell[:, None], 9, axis=1),
        "loud": 5 * bell,
        "loud opposed": 0.1 * rain - 5 * bell,
        "one sample": bell[1:2],
        "long": tones.tone("bell", 20.0),
        **{"late mark" if name == "late" else name: samples for name, samples in mark.items()},
        **{f"long {name}": np.concatenate([samples, tones.tone("bell", 20.0)])
           for name, samples in mark.items()},
        **bad,
    }  # fmt: skip
    for name, samples in sounds.items():
        soundfile.write(folder / f"{name}.wav", samples, rate, "FLOAT")
    for rate_hz in (999, 4, 10_000_001, 8_001):
        soundfile.write(folder / f"{rate_hz} Hz.wav", bell, rate_hz)
    (folder / "8001 Hz.wav").rename(folder / "raises.wav")
    for ending in ("wav", "aiff", "flac", "mp3", "ogg"):
        path = folder / f"cut.{ending}"
        soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(10 * rate), rate)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    segment = "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nplain.wav\n#EXT-X-ENDLIST\n"
    (folder / "playlist.m3u8").write_text(segment)
    (folder / "list.ffconcat").write_text("ffconcat version 1.0\nfile 'plain.wav'\n")
    (folder / "empty.wav").touch()
    for suffix in ("wav", "tar", "parquet"):
        (folder / f"text.{suffix}").write_text("this is not audio\n" * 100)
    bytes_of = {"bytes": pa.array([b"x"]), "path": pa.array(["x.wav"])}
    audio = pa.StructArray.from_arrays([*bytes_of.values()], [*bytes_of])
    pq.write_table(pa.table({"noisy": audio, "clean": audio}), folder / "two.parquet")
    pq.write_table(pa.table({"id": [1]}), folder / "no.parquet")
    (folder / "poison.wav").write_bytes(b"poison" + (folder / "plain.wav").read_bytes())
    (folder / "folder.wav").mkdir()
    os.mkfifo(folder / "pipe.wav")
    (folder / "loop.wav").symlink_to(folder / "loop.wav")
    outside = folder.parent / "outside.wav"
    outside.write_bytes((folder / "plain.wav").read_bytes())
    (folder / "out.wav").symlink_to(outside)
    with zipfile.ZipFile(folder / "all.zip", "w") as archive:
        archive.write(folder / "plain.wav", "in.wav")
        archive.write(folder / "plain.wav", "../climbs.wav")
    with tarfile.open(folder / "all.tar", "w") as tar:
        tar.add(folder / "plain.wav", "in.wav")
        for name, kind in (("link.wav", tarfile.SYMTYPE), ("hard.wav", tarfile.LNKTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, str(outside)
            tar.addfile(member)
    _Handler.clip = (folder / "plain.wav").read_bytes()
    (folder.parent / "store").mkdir()
    for name in ("403", "404", "429", "503", "reset", "short", "full", *map(str, range(6))):
        (folder.parent / "store" / f"{name}.wav").write_bytes(_Handler.clip)


CRASHES = """
import os, signal, soundfile
class Crashing(soundfile.SoundFile):
    def __init__(self, file, *arguments, **options):
        if isinstance(file, int) and os.pread(file, 6, 0) == b"poison":
            os.kill(os.getpid(), signal.SIGSEGV)
        super().__init__(file, *arguments, **options)
soundfile.SoundFile = Crashing
"""
"""In the decoder's own process, from its start: libsndfile as it would be with a hole in it."""


def end_idle_decoders() -> None:
    """So that what comes next starts its own, with what is installed then."""
    while isolation._IDLE:
        isolation._IDLE.pop().end()


@contextmanager
def _isolated(folder: Path) -> Iterator[None]:
    site = folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(CRASHES)
    end_idle_decoders()  # another test may have left some that have no hole
    try:
        with mock.patch.dict(os.environ, PYTHONPATH=str(site)):
            yield
    finally:
        end_idle_decoders()


def _raising_read(block: np.ndarray, file: soundfile.SoundFile) -> int:
    if file.samplerate == tones.RATE_HZ + 1:
        raise SystemError("the decoder has lost its mind")
    return _READ(block, file)


_READ = decoding.read_into


def _late_down(_: inference.InPlace, tensor: torch.Tensor) -> inference.Arriving:
    """As a GPU says what went wrong: when the answers are fetched."""

    def arrive() -> np.ndarray:
        if (tensor == _LATE).any():
            raise RuntimeError("CUDA error: device-side assert triggered")
        return tensor.float().numpy()

    return arrive


@contextmanager
def faulty_models(capabilities: Capabilities | None = None) -> Iterator[None]:
    """Models and a decoder that fail where they are told to, and no waiting for storage."""
    with ExitStack() as stack:
        stack.enter_context(
            mock.patch.object(tenacity.nap, "time", SimpleNamespace(sleep=lambda _: None))
        )
        stack.enter_context(mock.patch.object(decoding, "read_into", _raising_read))
        stack.enter_context(mock.patch.object(inference.InPlace, "down", _late_down))
        loaded = stack.enter_context(tone_runs.tones_as_models())
        separator = FaultyTones()
        if capabilities is not None:
            separator.capabilities = capabilities
        loaded.model = dataclasses.replace(
            loaded.model, separator=separator, query_encoder=FaultyClap()
        )
        yield


JOBS: dict[str, tuple[Callable[[list[str]], int], tuple[str, ...]]] = {
    "separate": (separate.run, ()),
    "isolated": (separate.run, ("--isolate_decoder",)),
    "positive": (separate.run, ()),
    "oracle": (separate.run, ("--model", "oracle-irm", "--scorer", "none")),
    "score": (score.run, ("--scorer", "none", "--score_rate_hz", str(tones.RATE_HZ))),
    "synthesize": (synthesize.run, ("--mix_rate_hz", str(tones.RATE_HZ))),
}


class World:
    """A folder with a file for every fault, stores that fail, and what became of every row."""

    def __init__(self, folder: Path, web: str) -> None:
        """Writes the files."""
        self.folder, self.files, self._web = folder, folder / "in", web
        _write_files(self.files)
        faulty_storage.begin(folder / "store")
        fsspec.register_implementation("denied", hostile_rows.DeniedFileSystem, clobber=True)
        self.letters: dict[str, Letter] = {}

    def uri(self, text: str) -> str:
        return text.replace("WEB", self._web).replace("HERE", str(self.files))

    def row(self, row_id: str, columns: dict[str, Any]) -> dict[str, Any]:
        """A row as a manifest has it."""
        text = json.dumps({"id": row_id, **columns})
        found = json.loads(text.replace("WEB", self._web).replace("HERE", str(self.files)))
        return {name: value for name, value in found.items() if value is not None}

    def run(self, job: str, given: dict[str, Fault]) -> None:
        """Runs a job over the rows of faults, and one that is in order; keeps what became of each.

        Files and web addresses outside of the folder of the files are not allowed.
        """
        rows = [self.row(row_id, fault.columns) for row_id, fault in given.items()]
        rows.append(self.row(f"good {job}", _GOOD_ROWS.get(job, PLAIN)))
        rows += [{**row, "positive_text": "again"} for row in rows if "duplicate_id" in row["id"]]
        manifest = tone_runs.write_manifest(self.files / f"{job}.jsonl", rows)
        output, local = f"faulty://{job}", self.folder / job
        command, more = JOBS[job]
        FaultyFileSystem.faults[:] = _storage_faults()
        places = (self.files, "/dev", "faulty://in", "denied://bucket", "memory://bucket",
                  "nonsense://b", "http://127.0.0.1:9", self.uri("WEB/allowed"),
                  "faulty://separate", "faulty://synthesize")  # fmt: skip
        arguments = ["--manifest", str(manifest), "--output", output, *tone_runs.QUIET, *more]
        arguments += ["--max_failure_rate", "1", "--max_clip_in_memory_s", "1"]
        arguments += [f"--allowed_uri_prefix={place}" for place in places]
        with ExitStack() as stack:
            if job == "isolated":
                stack.enter_context(_isolated(self.folder))
            if job == "oracle":
                stack.enter_context(
                    mock.patch.object(tenacity.nap, "time", SimpleNamespace(sleep=lambda _: None))
                )
            else:
                limited = Capabilities(negative=False) if job == "positive" else None
                stack.enter_context(faulty_models(limited))
            assert command(arguments) == 0
        faulty_storage.copy(output, local)
        self._keep(job, local, given)

    def _keep(self, job: str, output: Path, given: dict[str, Fault]) -> None:
        done = "manifest" if job == "synthesize" else "metrics"
        found = {row["id"]: Letter() for row in tone_runs.table(output, done)}
        assert f"good {job}" in found
        for row in tone_runs.table(output, "dead_letters"):
            letter = Letter(stage=row["stage"], code=row["error_type"], message=row["message"])
            row_id = row["id"]
            if row_id is None:  # it is only in the row as it was read
                row_id = next(each for each in given if f'"{each}"' in row["row_json"])
            found[row_id] = letter
        assert found.keys() == {*given, f"good {job}"}
        self.letters.update(found)


_GOOD_ROWS = {
    "score": {**PLAIN, "stem_uri": "HERE/plain.wav"},
    "synthesize": MIXED,
    "oracle": {**PLAIN, "reference_uri": "plain.wav"},
}


def _storage_faults() -> list[faulty_storage.Fault]:
    fault = faulty_storage.Fault
    return [
        fault(pattern=r"/in/403\.wav", kind="status", status=403),
        fault(pattern=r"/in/404\.wav", kind="status", status=404),
        fault(pattern=r"/in/429\.wav", kind="status", status=429),
        fault(pattern=r"/in/503\.wav", kind="status", status=503),
        fault(pattern=r"/in/reset\.wav", kind="reset"),
        fault(pattern=r"/in/full\.wav", kind="full"),
        fault(pattern=r"/in/short\.wav", kind="short"),
        fault(pattern="/stems/dataset=full/", kind="full", mode="w"),
        fault(pattern="/stems/dataset=forbidden/", kind="status", status=403, mode="w"),
        fault(pattern="/stems/dataset=broken/", kind="status", status=503, mode="w"),
    ]


def _run_over(
    world: World, folder: Path, name: str, *given: faulty_storage.Fault, more: tuple[str, ...] = ()
) -> tuple[int, set[str]]:
    """A run over files in a store with these faults; gives its exit code and what came instead."""
    rows = [{"id": f"{n}", **_mixture(f"faulty://in/{n}.wav", offset_s=n / 100)} for n in range(6)]
    manifest = tone_runs.write_manifest(folder / f"{name}.jsonl", rows)
    FaultyFileSystem.faults[:] = given
    output = f"faulty://{folder.name}/{name}"
    with faulty_models():
        code = tone_runs.run("--manifest", manifest, "--output", output, *more)
    assert all(fault.done for fault in given)
    left = faulty_storage.copy(output, folder / f"{name} {len(more)}")
    letters = {row["error_type"] for row in tone_runs.table(left, "dead_letters")}
    if code in (0, flags.EXIT_FAILURE_RATE):
        done = {row["id"] for row in tone_runs.table(left, "metrics")}
        assert len(done) == len(tone_runs.stems(left))
        assert letters or len(done) == len(rows)
    return code, letters


def _now_and_then(*given: faulty_storage.Fault) -> Case:
    """Storage that fails by turns changes nothing."""

    def run(world: World, folder: Path) -> Outcome:
        code, letters = _run_over(world, folder, "turns", *given)
        return Outcome(codes=frozenset(letters), exits=frozenset({code}))

    return run


def _ends_and_is_resumed(*given: faulty_storage.Fault) -> Case:
    """Storage that fails for good ends the run, and later the run goes on."""

    def run(world: World, folder: Path) -> Outcome:
        exits = set()
        for number, fault in enumerate(given):
            name = f"ends {number}"
            exits.add(_run_over(world, folder, name, fault)[0])
            assert _run_over(world, folder, name, more=("--resume",)) == (0, set())
        return Outcome(exits=frozenset(exits))

    return run


def _refused(world: World, folder: Path) -> Outcome:
    """Manifests that are not there or may not be read, and an output that may not be written."""
    manifest = tone_runs.write_manifest(folder / "rows.jsonl", [{"id": "a", **PLAIN}])
    given = [
        (folder / "gone.csv", folder / "out"),
        ("denied://bucket/rows.csv", folder / "out"),
        ("faulty://in/gone.csv", folder / "out"),
        (manifest, manifest / "out"),
    ]
    with faulty_models():
        exits = {tone_runs.run("--manifest", m, "--output", o) for m, o in given}
    assert not (folder / "out").exists()
    return Outcome(exits=frozenset(exits))


def _refused_engines(world: World, folder: Path) -> Outcome:
    manifest = tone_runs.write_manifest(folder / "rows.jsonl", [{"id": "a", **PLAIN}])
    given = (
        *(("--runner", name) for name in ("DaskRunner", "PrismRunner", "BundleBasedDirectRunner")),
        ("--direct_running_mode", "multi_threading"),
    )
    output = folder / "out"
    exits = {tone_runs.run("--manifest", manifest, "--output", output, *more) for more in given}
    assert not output.exists()
    return Outcome(exits=frozenset(exits))


def _usage_errors(world: World, folder: Path) -> Outcome:
    given = (["--no_such_flag"], ["words"], ["--manifest"], [], ["--batch_size", "0"])
    with chdir(folder):
        exits = {command(line) for command in (separate.run, score.run, synthesize.run)
                 for line in given}  # fmt: skip
    assert list(folder.iterdir()) == []
    return Outcome(exits=frozenset(exits))


def _odd_parquet(world: World, folder: Path) -> Outcome:
    """One row that is not UTF-8, and one with a date that no calendar has."""
    not_utf8 = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(np.int32([0, 2, 6])), pa.py_buffer(b"\xff\xfebell")]
    )
    dates = pa.array([2**62, None], pa.timestamp("ms"))
    codes: set[str] = set()
    for number, columns in enumerate(({"positive_text": not_utf8}, {"day": dates})):
        whole = {"id": ["a", "b"], "mixture_uri": [str(world.files / "plain.wav")] * 2}
        table = pa.table({**whole, "positive_text": ["bell", "bell"], **columns})
        pq.write_table(table, folder / f"{number}.parquet")
        output = folder / f"out{number}"
        with faulty_models():
            assert (
                tone_runs.run("--manifest", folder / f"{number}.parquet", "--output", output) == 1
            )
        assert [row["id"] for row in tone_runs.table(output, "metrics")] == ["b"]
        codes |= {row["error_type"] for row in tone_runs.table(output, "dead_letters")}
    return Outcome(codes=frozenset(codes))


def _good(*uris: str) -> list[Fault]:
    return [Fault(columns=_mixture(uri), code=GOOD) for uri in uris]


def _lost(code: str, *uris: str) -> list[Fault]:
    return [Fault(columns=_mixture(uri), code=code) for uri in uris]


def _once(number: int, kind: str, status: int = 0) -> faulty_storage.Fault:
    """The first read of one of the files fails."""
    return faulty_storage.Fault(pattern=rf"/in/{number}\.wav", kind=kind, status=status, times=1)


def _written(what: str, kind: str, after: int = 0) -> faulty_storage.Fault:
    """Files of this name cannot be written."""
    return faulty_storage.Fault(pattern=what, kind=kind, mode="w", after=after)


def _resumed(*tests: str) -> Elsewhere:
    return Elsewhere(tuple(f"pipeline/test_resume_otherwise.py::test_{name}" for name in tests))


RELIABILITY: dict[str, Case] = {
    "storage that fails 1 request in 20 (429, 500, 503, lost connections), or is slow": (
        _now_and_then(
            *(_once(number, "status", status) for number, status in enumerate((429, 500, 503))),
            _once(3, "reset"),
            _once(4, "slow"),
        )
    ),
    "a read that gives fewer bytes than there are": _now_and_then(
        _once(0, "short"), _once(5, "short")
    ),
    "403, 404": [
        *_lost("permission", "faulty://in/403.wav", "denied://bucket/a.wav"),
        *_lost("missing", "faulty://in/404.wav", "WEB/allowed/gone"),
    ],
    "429, 503 or cut connections that last": _lost(
        "io_error", *(f"faulty://in/{name}.wav" for name in ("429", "503", "reset", "short"))
    ),
    "a file that was cut off where it is stored": [
        *_lost("truncated", "cut.wav", "cut.aiff"),
        *_lost("not_audio", "cut.flac"),
        *_good("cut.ogg", "cut.mp3"),
    ],
    "an example clip, or a reference, that cannot be read": [
        Fault(columns={**PLAIN, "positive_audio_uris": ["gone.wav"]}, code="missing"),
        Fault(columns={**PLAIN, "reference_uri": "gone.wav"}, code="missing"),
        Fault(columns=PLAIN, code=GOOD),
    ],
    "a manifest, or an output folder, that cannot be read or written": _refused,
    "storage fails for good in the middle, where the journal or the tables are written": (
        _ends_and_is_resumed(_written("/journal/", "status"), _written("/metrics/", "reset"))
    ),
    "the disk is full while a stem, a residual or a rendered mixture is written, to its very last "
    "byte": [
        Fault(columns={**PLAIN, "dataset": "full"}, code="disk_full"),
        Fault(columns=_mixture("long.wav", dataset="full"), code="disk_full"),
    ],
    "the power fails, or the machine stops": Elsewhere(
        ("unit/transforms/test_durability.py::test_a_row_is_booked_after_its_files_are_on_disk",)
    ),
    "`stems/`, `metrics/`, … a `dataset=…` in it, or the whole output is a link to another "
    "disk": Elsewhere(
        (
            "pipeline/test_linked_folders.py::test_every_part_of_an_output_may_lie_elsewhere",
            "pipeline/test_linked_folders.py::test_the_output_may_be_a_link",
            "pipeline/test_linked_folders.py::"
            "test_a_recording_in_a_partition_that_lies_elsewhere_is_not_replaced_by_its_stem",
        )
    ),
    "a folder below those, which an id names (`stems/day1` for the row `day1/rec`), is a link to "
    "elsewhere": Elsewhere(
        (
            "pipeline/test_linked_folders.py::"
            "test_nothing_is_written_through_a_link_that_an_id_names",
            "pipeline/test_linked_folders.py::"
            "test_overwriting_deletes_nothing_through_a_link_that_an_id_names",
        )
    ),
    "the disk is full while the journal, metrics or the record are written": _ends_and_is_resumed(
        _written("/journal/", "full"),
        _written("/metrics/", "full"),
        _written("/run.json", "full", after=2),
    ),
    "memory too small for a batch": _lost("out_of_memory", "out_of_memory.wav"),
    "a machine that breaks: from then on the network fails on everything, as after a fault of a "
    "GPU": Elsewhere(
        (
            "pipeline/test_workers.py::"
            "test_a_machine_that_breaks_ends_the_run_and_resuming_completes_it",
            "pipeline/test_engines.py::"
            "test_a_dask_worker_whose_machine_breaks_ends_and_the_others_complete_the_run",
            "pipeline/test_engines.py::"
            "test_a_machine_that_breaks_behind_a_job_service_ends_the_run_and_resuming_completes_it",
        )
    ),
    "the decoder raises an error, of whatever type, on one clip": _lost("not_audio", "raises.wav"),
    "the decoder *crashes the process* on one clip (a segmentation fault in libsndfile or FFmpeg), "
    "or hangs: gives no sign of life for 60 s, or half of `--max_silence_s` where that is less": [
        Fault(columns=_mixture("poison.wav"), job="isolated", code="decoder_crashed"),
        Fault(columns=PLAIN, job="isolated", code=GOOD),
    ],
    "the run is killed, or interrupted": Elsewhere(
        (
            "pipeline/test_resume.py::"
            "test_a_run_that_was_stopped_leaves_whole_files_and_is_completed",
        )
    ),
    "a second run in the output folder of one that goes on, with `--resume`, `--overwrite` or "
    "neither": Elsewhere(
        (
            "pipeline/test_resume.py::"
            "test_a_second_run_is_refused_while_one_runs_and_changes_nothing",
            "pipeline/test_dataflow.py::test_results_are_not_deleted_while_their_job_goes_on",
        )
    ),
    "the run that held the output folder was killed": Elsewhere(
        (
            "pipeline/test_resume.py::"
            "test_a_run_that_was_stopped_leaves_whole_files_and_is_completed",
            "unit/pipelines/test_locks.py::"
            "test_elsewhere_a_lock_falls_free_after_minutes_of_silence",
        )
    ),
    "another run takes the output folder of one that was silent for too long (a machine that "
    "slept)": Elsewhere(
        (
            "pipeline/test_resume.py::"
            "test_a_run_whose_lock_was_taken_stops_and_leaves_the_record_alone",
        )
    ),
    "`--overwrite` where the user's own files lie between results": Elsewhere(
        ("pipeline/test_overwrite.py::test_what_runs_wrote_goes_and_what_they_did_not_stays",)
    ),
    "`--overwrite` with a manifest, a mixture or stems in `--output`, by whatever spelling or "
    "link": Elsewhere(
        (
            "pipeline/test_overwrite.py::test_nothing_that_the_run_reads_lies_where_it_deletes",
            "pipeline/test_overwrite.py::test_stems_that_are_to_be_scored_are_not_deleted",
        )
    ),
    "`--overwrite` with a manifest or a model that cannot be used": Elsewhere(
        (
            "pipeline/test_overwrite.py::test_nothing_goes_before_the_manifest_was_looked_at",
            "pipeline/test_overwrite.py::test_nothing_goes_before_the_model_was_loaded",
        )
    ),
    "a run would read, by whatever spelling or link, from the folder into which it writes its "
    "audio, or another part of its `--shard`s does": Elsewhere(
        (
            "pipeline/test_refusals.py::test_what_a_run_writes_is_not_what_it_reads",
            "pipeline/test_refusals.py::test_a_row_that_reads_what_the_run_writes_is_a_dead_letter",
            "pipeline/test_shards.py::test_a_part_reads_nothing_that_another_part_writes",
        )
    ),
    "`--overwrite` that is stopped while it deletes": Elsewhere(
        ("pipeline/test_overwrite.py::test_an_overwrite_that_was_stopped_is_not_resumed",)
    ),
    "a row of the manifest has changed since it was finished: another query, recording, part, "
    "column": _resumed(
        "another_query_for_the_same_recording_is_extracted",
        "a_file_of_the_same_name_in_another_folder_is_another_row",
        "rows_whose_content_differs_are_done_again_and_no_others",
    ),
    "rows are no longer in the manifest": _resumed(
        "rows_that_are_no_longer_in_the_manifest_are_named_and_leave_the_tables",
        "with_another_manifest_nothing_leaves_and_with_all_of_them_it_does",
    ),
    "a larger manifest, of the same name or another": _resumed(
        "a_larger_manifest_of_another_name_takes_the_place_of_the_first"
    ),
    "dead letters were mended in between, or their files are there now": _resumed(
        "dead_letters_are_tried_again_and_finished_rows_stay",
        "dead_letters_that_were_mended_in_between_are_done",
    ),
    "a resumed run is killed too, and the manifest is changed back": _resumed(
        "no_stem_is_written_over_while_a_table_still_says_what_was_in_it"
    ),
    "`run.json` is missing, empty or no record": _resumed(
        "without_its_record_a_run_is_not_mixed_and_its_rows_are_done_again"
    ),
    "a file of metrics, of dead letters or of the journal is cut, empty or not a table": _resumed(
        "a_damaged_file_of_metrics_is_named_and_its_rows_are_done_again",
        "a_damaged_journal_is_named_and_its_rows_are_done_again",
        "damaged_dead_letters_are_set_aside",
    ),
    "a file of segments is cut, empty, not a table or gone, or a run was killed between the files "
    "of two tables": Elsewhere(
        (
            "pipeline/test_segments.py::"
            "test_a_damaged_file_of_segments_is_named_and_its_rows_are_done_again",
            "pipeline/test_segments.py::"
            "test_segments_that_are_gone_and_those_that_are_of_no_row_are_put_right",
        )
    ),
    "a file of embeddings is gone, or a run was killed before it wrote them": Elsewhere(
        (
            "pipeline/test_embeddings.py::test_rows_whose_embeddings_are_gone_are_done_again",
            "pipeline/test_embeddings.py::"
            "test_what_a_killed_run_had_in_its_journal_is_not_embedded_again",
        )
    ),
    "a file of windows is cut or not a table": Elsewhere(
        ("pipeline/test_windows.py::test_a_file_that_is_damaged_is_heard_again",)
    ),
    "windows cannot be written, or the store does not give them": Elsewhere(
        (
            "pipeline/test_windows.py::test_rows_whose_windows_cannot_be_written_are_dead_letters",
            "pipeline/test_windows.py::test_rows_whose_windows_cannot_be_had_are_dead_letters",
        )
    ),
    "rows stand twice in the metrics": _resumed("rows_that_the_tables_have_twice_are_there_once"),
    "a stem was deleted or cut": _resumed("stems_are_looked_at_before_they_are_trusted"),
    "the output folder is another command's": Elsewhere(
        ("pipeline/test_resume_jobs.py::test_what_another_command_wrote_is_left_alone",)
    ),
    "only some rows have one of the user's own columns": _resumed(
        "columns_of_ones_own_are_everywhere"
    ),
    "a worker process of `--num_workers` is killed": Elsewhere(
        ("pipeline/test_workers.py::test_a_killed_worker_ends_the_run_and_resuming_completes_it",)
    ),
    "a worker process of `--num_workers` hangs: in an endless loop, or stopped by a signal": (
        Elsewhere(("pipeline/test_workers.py::test_a_worker_that_hangs_ends_the_run",))
    ),
    "a step raises in one worker process while another is busy": Elsewhere(
        (
            "pipeline/test_workers.py::"
            "test_a_step_that_fails_ends_the_run_though_another_worker_is_busy",
        )
    ),
    "a worker of a Dask cluster is killed, in whichever stage of the job": Elsewhere(
        (
            "pipeline/test_engines.py::test_a_dask_worker_that_is_killed_costs_nothing_but_time",
            "pipeline/test_dask_engine.py::test_the_run_goes_on_when_a_worker_is_killed",
            "pipeline/test_engines.py::test_a_dask_worker_that_dies_in_any_stage_costs_no_row",
        )
    ),
    "a service splits a bundle while it runs, and gives the rest to another worker": Elsewhere(
        ("pipeline/test_engines.py::test_a_bundle_that_is_split_while_it_runs_does_every_row_once",)
    ),
    "a step raises on a Dask cluster, or behind a job service": Elsewhere(
        (
            "pipeline/test_dask_engine.py::test_a_step_that_fails_ends_the_run_with_its_reason",
            "pipeline/test_engines.py::test_a_step_that_fails_behind_a_job_service_is_said",
            "pipeline/test_resume.py::"
            "test_a_job_that_failed_is_said_in_a_line_and_goes_on_from_its_journal",
        )
    ),
    "no scheduler, no workers, other versions, no worker with what hints ask for": Elsewhere(
        (
            "pipeline/test_dask_engine.py::test_no_scheduler_and_no_workers_are_said",
            "pipeline/test_dask_engine.py::"
            "test_hints_choose_the_worker_and_one_that_nobody_has_is_refused",
        )
    ),
    "scheduler or all workers are gone for a minute, or the scheduler does not answer": Elsewhere(
        ("pipeline/test_dask_engine.py::test_a_cluster_that_is_gone_ends_the_run",)
    ),
    "results do not reach the launcher, for lack of a connection or of time": Elsewhere(
        (
            "pipeline/test_dask_engine.py::"
            "test_results_that_do_not_arrive_are_asked_for_again_for_a_while",
        )
    ),
    "a runner that loses elements is chosen": _refused_engines,
    "a row names something outside of `--allowed_uri_prefix`, by whatever spelling, link, chain or "
    "redirect": _lost(
        "uri_not_allowed",
        *("/etc/passwd", "../outside.wav", "file:///etc/passwd", "out.wav", "WEB/secret/clip"),
        *("simplecache::memory://bucket/a", "zip://in.wav::/etc/all.zip", "WEB/allowed/out"),
    ),
    "an archive lacks the member, has links to outside, or climbs": [
        *_lost(
            "missing",
            *(f"zip://{name}::HERE/all.zip" for name in ("gone.wav", "../outside.wav")),
            *(f"tar://{name}::HERE/all.tar" for name in ("gone.wav", "link.wav", "hard.wav")),
            *("tar://../outside.wav::HERE/all.tar", "zip:///etc/passwd::HERE/all.zip"),
        ),
        *_good("zip://in.wav::HERE/all.zip", "tar://in.wav::HERE/all.tar"),
    ],
    "damaged, cut or lying audio, of 16 formats for libsndfile and 8 for FFmpeg": Elsewhere(
        (
            "fuzz/test_fuzz_audio.py::test_damaged_headers",
            "fuzz/test_fuzz_audio.py::test_lying_headers",
        )
    ),
    "an audio file that names other files or addresses": _lost(
        "not_audio", "playlist.m3u8", "list.ffconcat"
    ),
    "a sample rate of a few hertz, which would be terabytes at the model's rate": [
        *_lost("rate", "4 Hz.wav", "999 Hz.wav"),
    ],
    "`duration_s` of thirty years, a thousand sources": [
        Fault(columns={**MIXED, "duration_s": 30 * 365 * 86_400}, code="too_long"),
        Fault(columns={**MIXED, "interferer_uris": ["rain.wav"] * 999}, code="too_long"),
    ],
    "damaged, deep, huge, odd manifests (CSV, JSONL, gzip, Parquet)": Elsewhere(
        (
            "fuzz/test_fuzz_manifests.py::test_damaged_files",
            "fuzz/test_fuzz_manifests.py::test_huge_and_odd_content",
            "fuzz/test_fuzz_manifests.py::test_odd_parquet_schemas",
        )
    ),
    "a file in an archive whose name is not UTF-8": Elsewhere(
        ("pipeline/test_recordings.py::test_a_name_that_is_not_utf_8_is_a_dead_letter",)
    ),
    "FLAC, Ogg, MP3 files or tars that `cat` joined": Elsewhere(
        (
            "unit/transforms/test_audio_io.py::test_flac_files_that_were_joined_are_all_read",
            "unit/transforms/test_audio_io.py::test_other_files_that_were_joined_are_refused",
            "unit/manifests/test_shards.py::test_tars_that_were_joined_are_all_read",
        )
    ),
    "one Parquet row with text that is not UTF-8, or a date that no calendar has": _odd_parquet,
    "queries of control characters, lone surrogates, 100,000 characters, every script, emoji": [
        *(
            Fault(columns={**PLAIN, "positive_text": text}, code=GOOD)
            for text in ("bell \x07", "鐘 колокол जल", "🔔", "b\u0301ell \u202e", "x" * 30_000)
        ),
        *(
            Fault(columns={**PLAIN, "positive_text": text}, code="invalid_row")
            for text in ("bell \ud800", "x" * 100_000, "bell \x00")
        ),
    ],
    "weight files: damaged, lying, zip bombs, pickles that call": Elsewhere(
        (
            "fuzz/test_fuzz_checkpoints.py::test_damaged_files",
            "fuzz/test_fuzz_checkpoints.py::test_lying_safetensors_headers",
            "fuzz/test_fuzz_checkpoints.py::test_no_call_in_a_pickle_is_made",
            "fuzz/test_fuzz_checkpoints.py::test_a_zip_bomb_is_not_unpacked",
        )
    ),
    "any command line": _usage_errors,
    "credentials in URIs and options": Elsewhere(
        ("pipeline/test_confidential.py::test_a_run_says_no_secret",)
    ),
    "markup in ids, labels, captions and messages": Elsewhere(
        ("pipeline/test_report.py::test_what_a_manifest_says_is_text_everywhere",)
    ),
    "silence": _lost("silent", "silent.wav"),
    "one sample, denormal numbers, direct current, clipped, 10,000 times full scale": Elsewhere(
        ("unit/model/test_metamorphic.py::test_odd_signals_give_finite_stems",)
    ),
    "the same signals, tiny and 192 kHz ones, identical channels, a silent reference, a mixture "
    "that is its own reference, through the whole job": Elsewhere(
        (
            "pipeline/test_numbers.py::test_only_silence_has_no_stem",
            "pipeline/test_numbers.py::test_every_metric_is_finite_or_says_why_it_is_not",
        )
    ),
    "8 kHz to 192 kHz, 1 to 8 channels": Elsewhere(
        ("pipeline/test_hostile.py::test_each_row_of_a_hostile_manifest_ends_as_documented",)
    ),
    "the mixture inverted": Elsewhere(
        ("unit/model/test_metamorphic.py::test_an_inverted_mixture_gives_the_inverted_stem",)
    ),
    "a constant offset (direct current), far above the sound too": Elsewhere(
        ("pipeline/test_quiet_recordings.py::test_a_constant_offset_does_not_count",)
    ),
    "channels swapped": Elsewhere(
        ("unit/model/test_metamorphic.py::test_swapped_channels_give_swapped_stems",)
    ),
    **dict.fromkeys(
        ("silence of one hop before the recording", "silence of one hop after it"),
        Elsewhere(
            (
                "unit/model/test_metamorphic.py::"
                "test_delay_and_appended_silence_change_nothing_beyond_the_windows_they_touch",
            )
        ),
    ),
    "half or twice the level": Elsewhere(
        (
            "unit/model/test_metamorphic.py::"
            "test_the_level_of_the_mixture_matters_less_than_what_is_asked",
        )
    ),
    "positive and negative query exchanged": Elsewhere(
        ("unit/model/test_metamorphic.py::test_exchanged_queries_give_roughly_the_other_source",)
    ),
    "other batches, threads (`OMP_NUM_THREADS` too), worker processes, order, resumption, on one "
    "machine's CPU": Elsewhere(
        (
            "pipeline/test_numbers.py::"
            "test_another_order_other_batches_and_processes_give_the_same_bytes",
            "pipeline/test_numbers.py::"
            "test_a_run_that_was_resumed_and_other_threads_give_the_same_bytes",
            "unit/model/test_metamorphic.py::test_a_window_gives_the_same_bits_in_every_batch",
        )
    ),
    "other machines, a GPU; what tests require of runners": Elsewhere(
        (
            "pipeline/test_engines.py::test_a_dask_cluster",
            "pipeline/test_workers.py::test_a_real_network_gives_the_same_alone_and_in_batches",
        )
    ),
    "20,000 short clips, 5 % bad rows, 1 % of the reads refused, short, 503 or lost": Elsewhere(
        ("pipeline/test_soak.py::test_every_row_of_a_soak_is_accounted_for",)
    ),
    "a batch too large for the memory of the network, filled up or not": Elsewhere(
        (
            "unit/model/test_inference.py::test_a_batch_that_does_not_fit_is_halved_and_tried_again",
            "unit/model/test_inference.py::test_a_filled_up_batch_that_does_not_fit_is_halved_too",
            "unit/model/test_inference.py::test_memory_too_small_for_one_window_is_said",
        )
    ),
    "a GPU that reports a failure late": _lost("model_error", "late mark.wav"),
}


@contextmanager
def world(folder: Path) -> Iterator[World]:
    """The world after every job has been run once."""
    with _web() as web:
        made = World(folder, web)
        for job in JOBS:
            made.run(job, {row_id: fault for row_id, fault in _all_faults() if fault.job == job})
        yield made


def _all_faults() -> Iterator[tuple[str, Fault]]:
    """Every fault that is a row, with the id of that row."""
    for (code, stage), given in ERRORS.items():
        for number, fault in enumerate(given):
            yield error_id(code, stage, number), fault
    for number, case in enumerate(RELIABILITY.values()):
        if isinstance(case, list):
            for place, fault in enumerate(case):
                yield fault_id(number, place), fault


def error_id(code: str, stage: str, number: int) -> str:
    """The id of a row of ``ERRORS``."""
    return f"{code} {stage} {number}"


def fault_id(row: int, number: int) -> str:
    """The id of a row of ``RELIABILITY``."""
    return f"row {row} {number}"
