from __future__ import annotations

import dataclasses
import datetime
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import stores
from pipelines.flags import UsageError
from pipelines.output_folder import lock as locks
from pipelines.output_folder.contents import LOCK
from transforms.storage import Storage

STORAGE = Storage()


def _ended(_: Mapping[str, Any]) -> None:
    return


def _runs(job: Mapping[str, Any]) -> None:
    raise UsageError(f"job {job['id']} still runs")


class Held:
    """Tries to hold a folder; keeps what was said."""

    def __init__(self, output: str, storage: Storage = STORAGE) -> None:
        self.output, self.storage, self.said = output, storage, list[str]()

    def __call__(self, *, ended: Callable[..., None] = _ended, force: bool = False) -> Any:
        owner = locks.this_process(("python", "-m", "x"))
        return locks.holding(
            self.storage, self.output, owner, ended, force=force, say=self.said.append
        )

    def leave(self, **changes: Any) -> locks.Owner:
        """A lock that another run left."""
        owner = dataclasses.replace(locks.this_process(("their", "command")), **changes)
        uri = f"{self.output}/{LOCK}"
        self.storage.write_bytes(uri, json.dumps(dataclasses.asdict(owner)).encode())
        return owner


@pytest.fixture(params=["local", "memory"])
def held(request: pytest.FixtureRequest, tmp_path: Path) -> Held:
    if request.param == "local":
        return Held(str(tmp_path / "out"))
    return Held(f"memory://locks-{tmp_path.name}/out")


def _ago(seconds: float) -> str:
    now = datetime.datetime.now(datetime.UTC)
    return (now - datetime.timedelta(seconds=seconds)).isoformat()


def test_one_at_a_time_and_nothing_is_left(held: Held, tmp_path: Path) -> None:
    with held() as lock:
        lock.check()
        with pytest.raises(UsageError, match=r"in use by a run that .* started at .*python -m x"):
            held().__enter__()
    with held():
        pass
    assert held.said == []
    assert not list(tmp_path.rglob("*")) or not list((tmp_path / "out").iterdir())


def test_it_is_released_after_an_error_and_after_an_interrupt(held: Held) -> None:
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), held():
            raise error
    with held():
        pass
    assert held.said == []


def test_of_many_that_begin_at_once_one_succeeds(held: Held) -> None:
    barrier, done, results = threading.Barrier(8), threading.Event(), list[str]()

    def begin() -> None:
        barrier.wait()
        try:
            with held():
                results.append("held")
                done.wait()
        except UsageError:
            results.append("refused")
        if len(results) == 8:
            done.set()

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads[:]:
        while thread.is_alive() and len(results) < 8:
            thread.join(0.01)
    done.set()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["held", *["refused"] * 7]


def test_of_many_that_take_over_a_stale_lock_one_succeeds(held: Held) -> None:
    held.leave(machine="another", beat_at=_ago(10_000))
    test_of_many_that_begin_at_once_one_succeeds(held)
    assert len(held.said) == 1


def test_a_process_of_this_machine_that_ended_holds_nothing(held: Held) -> None:
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                           capture_output=True, text=True, check=True)  # fmt: skip
    held.leave(pid=int(ended.stdout), process="12345")
    with held():
        pass
    (said,) = held.said
    assert "taking over" in said
    assert "their command" in said


def test_a_process_of_this_machine_that_lives_holds_it_however_silent(held: Held) -> None:
    held.leave(beat_at=_ago(10_000))
    with pytest.raises(UsageError, match="in use"):
        held().__enter__()


def test_a_new_process_of_the_same_number_is_not_the_owner(held: Held) -> None:
    held.leave(process="a process that began earlier")
    with held():
        pass
    assert len(held.said) == 1


@pytest.mark.parametrize(("silent_s", "free"), [(10.0, False), (290.0, False), (310.0, True)])
def test_elsewhere_a_lock_falls_free_after_minutes_of_silence(
    held: Held, silent_s: float, free: bool
) -> None:
    held.leave(machine="another", host="far", beat_at=_ago(silent_s))
    if free:
        with held():
            pass
        assert "@far" in held.said[0]
        return
    with pytest.raises(UsageError, match=r"@far .* sign of life is .* --force_unlock"):
        held().__enter__()


def test_signs_of_life_are_given(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BEAT_S", 0.01)
    beats, written = threading.Event(), list[str]()
    write_bytes = Storage.write_bytes

    def write(storage: Storage, uri: str, data: bytes) -> None:
        write_bytes(storage, uri, data)
        written.append(json.loads(data)["beat_at"])
        if len(written) > 2:
            beats.set()

    monkeypatch.setattr(Storage, "write_bytes", write)
    with held():
        assert beats.wait(60)
    assert locks.read(held.storage, f"{held.output}/{LOCK}") is None


def test_who_lost_the_lock_is_told_and_does_not_release_the_others(held: Held) -> None:
    with held() as lock:
        other = held.leave(user="somebody")
        lock.name_job({"id": "1"})
        with pytest.raises(locks.LockLostError, match="taken over by somebody@"):
            lock.check()
    assert locks.read(held.storage, f"{held.output}/{LOCK}") == other


def test_the_job_of_a_service_holds_it_until_the_service_says_that_it_ended(held: Held) -> None:
    with held() as lock:
        lock.name_job({"id": "j1"})
        lock.leave_to()
    with pytest.raises(UsageError, match="job j1 still runs"):
        held(ended=_runs).__enter__()
    with held(ended=_ended):
        pass
    assert len(held.said) == 1


def test_a_job_that_nobody_can_ask_about_holds_it_until_it_is_forced(held: Held) -> None:
    with held() as lock:
        lock.leave_to("the template gs://b/t")
    with pytest.raises(UsageError, match=r"left to the template gs://b/t.*--force_unlock"):
        held().__enter__()
    with held(force=True):
        pass
    with held():
        pass


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"\xff", b'{"token": 1}', b"null", b"[" * 9_999]
)
def test_a_lock_that_cannot_be_read_is_only_forced(held: Held, content: bytes) -> None:
    held.storage.write_bytes(f"{held.output}/{LOCK}", content)
    with pytest.raises(UsageError, match=r"lock\.json cannot be read .*--force_unlock"):
        held().__enter__()
    with held(force=True):
        pass
    with held():
        pass


@pytest.mark.parametrize(
    "changes", [{"job": "x"}, {"job": []}, {"beat_at": "2020-01-01T00:00:00"}, {"beat_at": 5}]
)
def test_a_lock_of_other_values_is_only_forced(held: Held, changes: dict[str, Any]) -> None:
    held.leave(machine="elsewhere", **changes)
    with pytest.raises(UsageError, match=r"lock\.json cannot be read .*--force_unlock"), held():
        pass
    with held(force=True):
        pass


def test_a_clock_that_is_ahead_is_said(held: Held) -> None:
    held.leave(machine="elsewhere", beat_at=_ago(-86_400))
    with pytest.raises(UsageError, match=r"its clock is 86[34]"), held():
        pass


@pytest.mark.parametrize("depth", [1, 2])
def test_a_run_that_was_killed_while_it_took_over_stops_no_other(held: Held, depth: int) -> None:
    left = held.leave(machine="another", beat_at=_ago(10_000))
    claim = f"{held.output}/_work/lock"
    for token in [left.token, "first"][:depth]:
        claim = f"{claim}-{token}"
        dead = dataclasses.replace(left, token="first")
        held.storage.write_bytes(f"{claim}.json", json.dumps(dataclasses.asdict(dead)).encode())
    test_of_many_that_begin_at_once_one_succeeds(held)
    assert len(held.said) == 1
    assert held.storage.list_files(f"{held.output}/_work", "") == []


def test_claims_on_a_lock_stay_while_it_is_there(
    held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that come then would each have one: on the lock, and on the claim of the killed run."""
    left = held.leave(machine="another", beat_at=_ago(10_000))
    claim = f"{held.output}/_work/lock-{left.token}.json"
    held.storage.write_bytes(claim, json.dumps(dataclasses.asdict(left)).encode())
    refused = mock.Mock(side_effect=OSError("no space"))
    monkeypatch.setattr(Storage, "write_bytes", refused)
    with pytest.raises(OSError, match="no space"):
        held().__enter__()
    assert held.storage.exists(claim)


@pytest.mark.parametrize("content", [b"{}", None], ids=["cannot be read", "of one that lives"])
def test_the_claim_of_another_run_is_only_forced(held: Held, content: bytes | None) -> None:
    left = held.leave(machine="another", beat_at=_ago(10_000))
    living = json.dumps(dataclasses.asdict(locks.this_process(()))).encode()
    held.storage.write_bytes(f"{held.output}/_work/lock-{left.token}.json", content or living)
    with pytest.raises(UsageError, match=r"taking over .* --force_unlock"):
        held().__enter__()
    with held(force=True):
        pass


@pytest.mark.parametrize("kind", stores.KINDS)
def test_every_store_creates_a_file_once(kind: str, tmp_path: Path) -> None:
    with stores.place(kind, tmp_path) as place:
        uri = f"{place}/out[1]/lock.json"
        assert STORAGE.create(uri, b"1")
        assert not STORAGE.create(uri, b"2")
        assert STORAGE.read_bytes(uri) == b"1"
        STORAGE.remove_files([uri], place)
        assert STORAGE.create(uri, b"2")


def test_a_disk_without_hard_links_knows_exclusive_creation_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr("os.link", refused)
    uri = str(tmp_path / "out" / "a")
    assert STORAGE.create(uri, b"1")
    assert not STORAGE.create(uri, b"2")
    assert STORAGE.read_bytes(uri) == b"1"
