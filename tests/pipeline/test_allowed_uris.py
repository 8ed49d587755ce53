"""--allowed_uri_prefix: rows of a stranger's manifest read what they may, and nothing else."""

from __future__ import annotations

import dataclasses
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile

import report_runs
import tone_runs
import tones
from manifests import validate
from pipelines import report, score, synthesize

pytestmark = pytest.mark.usefixtures("loaded")


class Site(http.server.ThreadingHTTPServer):
    """A web server with a clip at every path; below ``/to/`` it leads to another server's."""

    daemon_threads = True

    def __init__(self, clip: bytes, other: str = "") -> None:
        super().__init__(("127.0.0.1", 0), _SiteHandler)
        self.clip, self.other = clip, other
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _SiteHandler(http.server.BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        if self.path.startswith("/to/"):
            self.send_response(307)
            self.send_header("Location", self.server.other + self.path.removeprefix("/to"))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.clip)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(self.server.clip)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@dataclasses.dataclass
class Sites:
    """A server that is allowed, and one that is not, to which the first leads."""

    folder: Path
    allowed: Site
    forbidden: Site

    @property
    def limits(self) -> tuple[str, str]:
        return "--allowed_uri_prefix", self.allowed.url


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[Sites]:
    soundfile.write(tmp_path / "clip.wav", tones.tone("bell", 0.5), tones.RATE_HZ, "FLOAT")
    clip = (tmp_path / "clip.wav").read_bytes()
    with Site(clip) as forbidden, Site(clip, forbidden.url) as allowed:
        for server in (forbidden, allowed):
            threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Sites(tmp_path, allowed, forbidden)
        for server in (forbidden, allowed):
            server.shutdown()


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """A folder that is allowed, beside one that is not."""
    for folder in ("allowed", "secret"):
        (tmp_path / folder).mkdir()
        for label in ("bell", "rain"):
            path = tmp_path / folder / f"{label}.wav"
            soundfile.write(path, tones.tone(label, 0.5), tones.RATE_HZ, "FLOAT")
    (tmp_path / "allowed" / "link.wav").symlink_to(tmp_path / "secret" / "bell.wav")
    return tmp_path


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Rows by id; what begins with "bad" names something that is not allowed."""
    inside, outside = str(folder / "allowed"), str(folder / "secret")
    good = {"mixture_uri": f"{inside}/bell.wav", "positive_text": "bell"}
    mixed = {"target_uri": f"{inside}/bell.wav", "interferer_uris": [f"{inside}/rain.wav"]}
    query = {"positive_text": "bell", "snr_db": 3}
    return {
        "good": good,
        "good mixed": {**mixed, **query},
        "bad mixture": {**good, "mixture_uri": f"{outside}/bell.wav"},
        "bad dots": {**good, "mixture_uri": f"{inside}/../secret/bell.wav"},
        "bad relative": {**good, "mixture_uri": "secret/bell.wav"},
        "bad scheme": {**good, "mixture_uri": f"file://{outside}/bell.wav"},
        "bad link": {**good, "mixture_uri": f"{inside}/link.wav"},
        "bad address": {**good, "mixture_uri": "http://169.254.169.254/latest/meta-data/"},
        "bad chain": {**good, "mixture_uri": f"simplecache::file://{inside}/bell.wav"},
        "bad reference": {**good, "reference_uri": f"{outside}/bell.wav"},
        "bad example": {**good, "positive_audio_uris": [f"{outside}/bell.wav"]},
        "bad negative": {**good, "negative_audio_uris": [f"{outside}/rain.wav"]},
        "bad target": {**mixed, **query, "target_uri": f"{outside}/bell.wav"},
        "bad interferer": {**mixed, **query, "interferer_uris": [f"{outside}/rain.wav"]},
    }


def write(folder: Path, rows: dict[str, dict[str, Any]]) -> Path:
    given = [{"id": row_id, **row} for row_id, row in rows.items()]
    return tone_runs.write_manifest(folder / "rows.jsonl", given)


def refused(output: Path) -> dict[str, str]:
    letters = tone_runs.table(output, "dead_letters")
    return {row["id"]: f"{row['stage']}/{row['error_type']}" for row in letters}


def expected(rows: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {name: "manifest/uri_not_allowed" for name in rows if name.startswith("bad")}


def test_separate_does_what_is_allowed_and_says_what_is_not(clips: Path) -> None:
    rows = rows_of(clips)
    arguments = ("--manifest", write(clips, rows), "--allowed_uri_prefix", clips / "allowed")

    assert tone_runs.run(*arguments, "--output", clips / "out") == 1

    assert {row["id"] for row in tone_runs.table(clips / "out", "metrics")} == {
        "good",
        "good mixed",
    }
    assert refused(clips / "out") == expected(rows)
    letters = {row["id"]: row for row in tone_runs.table(clips / "out", "dead_letters")}
    assert "negative_audio_uris: " in letters["bad negative"]["message"]
    record = tone_runs.record(clips / "out")
    assert record["config"]["allowed_uri_prefix"] == [str(clips / "allowed")]
    assert record["row_counts"]["by_reason"] == {"manifest/uri_not_allowed": len(expected(rows))}


def test_a_report_reads_no_more_than_its_run_was_allowed_to(clips: Path) -> None:
    manifest = write(clips, {"good": rows_of(clips)["good"]})
    limits = ("--allowed_uri_prefix", clips / "allowed")
    assert tone_runs.run("--manifest", manifest, "--output", clips / "out", *limits) == 0
    write(clips, {"good": rows_of(clips)["bad mixture"]})  # exchanged after the run
    words = [str(clips / "out"), "--output", str(clips / "page"), "--metric", "clap_score"]
    assert report.run(words) == 0
    page = (clips / "page" / "report.html").read_text(encoding="utf-8")
    assert "Spectrogram of the stem, best clip" in page
    assert "Spectrogram of the mixture, best clip" not in page  # what metrics name was allowed


def rows_to(sites: Sites) -> dict[str, dict[str, Any]]:
    """Rows by id that name, in each column that can, what leads out of the allowed place."""
    fine, out = f"{sites.allowed.url}/a.wav", f"{sites.allowed.url}/to/b.wav"
    recorded = {"mixture_uri": fine, "positive_text": "bell"}
    mixed = {"target_uri": fine, "interferer_uris": [fine], "positive_text": "bell", "snr_db": 3}
    several = {**mixed, "target_uri": None}
    return {
        "good": recorded,
        "mixture": {**recorded, "mixture_uri": out},
        "archive": {**recorded, "mixture_uri": f"zip://x.wav::{out}"},
        "reference": {**recorded, "reference_uri": out},
        "example": {**recorded, "positive_audio_uris": [fine, out]},
        "negative": {**recorded, "negative_audio_uris": [out]},
        "target": {**mixed, "target_uri": out},
        "targets": {**several, "target_uris": [fine, out]},
        "interferer": {**mixed, "interferer_uris": [fine, out]},
        "stem": {**recorded, "stem_uri": out},
    }


def json_of(page: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(page.split('id="data">', 1)[1].split("</script>", 1)[0])
    return found


def with_stems(rows: dict[str, dict[str, Any]], stem_uri: str) -> dict[str, dict[str, Any]]:
    return {name: {"stem_uri": stem_uri, **row} for name, row in rows.items()}


@pytest.mark.parametrize("isolated", [False, True])
def test_separate_follows_no_redirect_out(sites: Sites, isolated: bool) -> None:
    given = ["--manifest", write(sites.folder, rows_to(sites)), *sites.limits]
    given += ["--isolate_decoder"] if isolated else []
    tone_runs.run(*given, "--output", sites.folder / "out")
    expected = rows_to(sites).keys() - {"good", "stem"}
    assert refused(sites.folder / "out").keys() == expected
    assert set(refused(sites.folder / "out").values()) <= {
        *("read/uri_not_allowed", "embed_queries/uri_not_allowed"),
    }
    assert "GET /to/b.wav" in sites.allowed.asked
    assert sites.forbidden.asked == []


def test_synthesize_follows_no_redirect_out(sites: Sites) -> None:
    rows = {name: row for name, row in rows_to(sites).items() if "interferer_uris" in row}
    given = ["--manifest", write(sites.folder, rows), "--output", sites.folder / "out"]
    given += [*sites.limits, "--progress", "none"]
    assert synthesize.run([str(argument) for argument in given]) == 1
    assert refused(sites.folder / "out").keys() == rows.keys()
    assert "GET /to/b.wav" in sites.allowed.asked
    assert sites.forbidden.asked == []


@pytest.mark.parametrize("place", ["column", "folder", "template"])
def test_score_follows_no_redirect_out(sites: Sites, place: str) -> None:
    rows = with_stems(rows_to(sites), f"{sites.allowed.url}/s.wav")
    given = ["--manifest", write(sites.folder, rows), "--output", sites.folder / "out"]
    given += [*sites.limits, "--scorer", "own", "--score_rate_hz", tones.RATE_HZ]
    with Site(b"", sites.forbidden.url) as stems:  # the operator's own, which leads out too
        threading.Thread(target=stems.serve_forever, daemon=True).start()
        where = {"folder": f"{stems.url}/to", "template": f"{stems.url}/to/{{id}}.wav"}
        given += ["--stems", where[place]] if place in where else []
        assert score.run([*(str(argument) for argument in given), "--progress", "none"]) == 1
        stems.shutdown()
    left = {"good"} if place == "column" else set()
    assert {row["id"] for row in tone_runs.table(sites.folder / "out", "metrics")} == left
    assert refused(sites.folder / "out").keys() == rows.keys() - left
    assert sites.forbidden.asked == []


def write_report_run(sites: Sites, name: str, prefixes: list[str], **stem: str) -> Path:
    """A run folder whose rows and stems lead out, as its author left it."""
    rows = {key: row for key, row in rows_to(sites).items() if key != "archive"}
    manifest = sites.folder / name / "rows.jsonl"
    manifest.parent.mkdir()
    write(manifest.parent, rows)
    fine, out = f"{sites.allowed.url}/s.wav", f"{sites.allowed.url}/to/b.wav"
    uris = {"stem": out, **stem}
    clips = [
        report_runs.clip(number, id=key, stem_uri=uris.get(key, fine), sample_rate_hz=tones.RATE_HZ)
        for number, key in enumerate(rows)
    ]
    record = {
        "manifests": [{"uri": str(manifest), "sha256": report_runs.MANIFEST_SHA}],
        "config": {"output": f"/elsewhere/{name}", "allowed_uri_prefix": prefixes},
    }
    return report_runs.write_run(sites.folder / name, clips, record=record)


def page_of(sites: Sites, run: Path, *arguments: str) -> str:
    given = [str(run), "--output", str(sites.folder / "page"), "--listen", "4", *arguments]
    assert report.run(given) == 0
    return (sites.folder / "page" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("whose", ["the run's", "the report's", "both"])
def test_a_report_follows_no_redirect_out(sites: Sites, whose: str) -> None:
    recorded = [] if whose == "the report's" else [sites.allowed.url]
    run = write_report_run(sites, "run", recorded)
    page = page_of(sites, run, *(() if whose == "the run's" else sites.limits))
    assert "GET /to/b.wav" in sites.allowed.asked
    assert sites.forbidden.asked == []
    assert page.count("which is outside of what --allowed_uri_prefix allows") == 6
    assert 'alt="Spectrogram of the mixture' in page
    assert 'alt="Spectrogram of the stem' in page


def test_a_report_reads_stems_that_are_named_elsewhere_only_where_that_is_allowed(
    sites: Sites,
) -> None:
    (sites.folder / "secret").mkdir()
    secret = shutil.copy(sites.folder / "clip.wav", sites.folder / "secret" / "clip.wav")
    run = write_report_run(
        sites,
        "run",
        [sites.allowed.url],
        good=str(secret),
        mixture=f"{sites.forbidden.url}/b.wav",
        reference="/elsewhere/run/../secret/clip.wav",
        example="/elsewhere/run/stems/a.wav",
    )
    (run / "stems").mkdir()
    shutil.copy(secret, run / "stems" / "a.wav")
    page = page_of(sites, run)
    for uri in (secret, f"{sites.forbidden.url}/b.wav", f"{run}/../secret/clip.wav"):
        assert f"Stem: {uri}: is outside of what --allowed_uri_prefix allows" in page
    assert "a.wav: is outside" not in page
    assert "../secret" not in "".join(filter(None, json_of(page)["stems"]))
    assert sites.forbidden.asked == []


@pytest.mark.parametrize("believed", [True, False])
def test_stems_on_another_disk_are_read_where_their_run_is_believed(
    sites: Sites, believed: bool
) -> None:
    run = write_report_run(
        sites, "run", [sites.allowed.url], good="/elsewhere/run/stems/a.wav", stem="/scored/b.wav"
    )
    for place, name in (("disk", "a.wav"), ("scored", "b.wav")):
        (sites.folder / place).mkdir()
        shutil.copy(sites.folder / "clip.wav", sites.folder / place / name)
    (run / "stems").symlink_to(sites.folder / "disk")
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    record["settings"] = {"stems": "/scored/{id}.wav"}
    (run / "run.json").write_text(json.dumps(record), encoding="utf-8")
    page = page_of(sites, run, *(() if believed else sites.limits))
    assert ("stems/a.wav: is outside" in page) != believed
    assert ("/scored/b.wav: is outside" in page) != believed


def test_a_report_reads_no_manifest_that_it_may_not(sites: Sites) -> None:
    run = write_report_run(sites, "run", [])
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    record["manifests"] = [{"uri": f"{sites.forbidden.url}/rows.csv", "sha256": "0"}]
    (run / "run.json").write_text(json.dumps(record), encoding="utf-8")
    page = page_of(sites, run, *sites.limits)
    assert "cannot be read any more, or may not be" in page
    assert sites.forbidden.asked == []


@pytest.mark.parametrize("prefixes", ["http://a", [1], ["https://"]])
def test_a_record_without_usable_prefixes_is_refused(
    sites: Sites, prefixes: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    run = write_report_run(sites, "run", prefixes)
    assert report.run([str(run), "--output", str(sites.folder / "page")]) == 2
    assert "run.json: allowed_uri_prefix: " in capfd.readouterr().err
    assert sites.allowed.asked == sites.forbidden.asked == []


def test_a_manifest_is_validated_without_asking_what_its_rows_name(sites: Sites) -> None:
    assert validate.run([str(write(sites.folder, rows_to(sites)))]) == 0
    assert sites.allowed.asked == sites.forbidden.asked == []


def test_two_prefixes_allow_both(clips: Path) -> None:
    rows = {name: row for name, row in rows_of(clips).items() if name not in ("bad address",)}
    limits = [f"--allowed_uri_prefix={clips / name}" for name in ("allowed", "secret")]
    tone_runs.run("--manifest", write(clips, rows), "--output", clips / "out", *limits)
    assert refused(clips / "out") == {"bad chain": "manifest/uri_not_allowed"}


def test_synthesize_mixes_only_what_is_allowed(clips: Path) -> None:
    rows = {name: row for name, row in rows_of(clips).items() if "target_uri" in row}
    manifest = write(clips, rows)
    given = ["--manifest", manifest, "--output", clips / "out", "--progress", "none"]
    given += ["--allowed_uri_prefix", clips / "allowed"]

    assert synthesize.run([str(argument) for argument in given]) == 1

    assert refused(clips / "out") == expected(rows)
    assert len(list((clips / "out" / "mixtures").rglob("*.flac"))) == 1


@pytest.mark.parametrize("place", ["column", "folder", "template"])
def test_score_takes_stems_only_from_where_it_may(clips: Path, place: str) -> None:
    (clips / "stems").mkdir()
    for name in ("good", "bad stem"):
        path = clips / "stems" / f"{name}.wav"
        path.symlink_to(clips / ("allowed" if name == "good" else "secret") / "bell.wav")
    good = rows_of(clips)["good"]
    rows = {
        name: {**good, "stem_uri": str(clips / "stems" / f"{name}.wav")}
        for name in ("good", "bad stem")
    }
    given = ["--manifest", write(clips, rows), "--output", clips / "out", "--scorer", "none"]
    given += ["--score_rate_hz", tones.RATE_HZ, "--progress", "none"]
    given += ["--allowed_uri_prefix", clips / "allowed"]
    stems = {"folder": clips / "stems", "template": f"{clips}/stems/{{id}}.wav"}
    given += ["--stems", stems[place]] if place in stems else []

    assert score.run([str(argument) for argument in given]) == 1

    assert refused(clips / "out") == {"bad stem": "read/stem_uri_not_allowed"}
    assert [row["id"] for row in tone_runs.table(clips / "out", "metrics")] == ["good"]


def test_a_prefix_that_is_no_place_is_refused_at_once(
    clips: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    manifest = write(clips, rows_of(clips))
    code = tone_runs.run(
        "--manifest", manifest, "--output", clips / "out", "--allowed_uri_prefix", "https://"
    )
    assert code == 2
    assert "--allowed_uri_prefix: 'https://': expected" in capfd.readouterr().err
    assert not (clips / "out").exists()
