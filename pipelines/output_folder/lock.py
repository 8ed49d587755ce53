"""One run at a time in an output folder: who holds it, whether that run lives, and taking it over.

The lock is a small file in ``_work``, taken by exclusive creation and removed when the run has
ended, however it ended. While the run computes, its launcher writes the time into it again and
again. A lock is free when its process is gone from this machine, when nobody has written into it
for some minutes, or when the service says that the job it names has ended.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import getpass
import json
import logging
import math
import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.flags import UsageError
from pipelines.output_folder.contents import LOCK, STAGING, WORK
from transforms.storage import Storage, join
from transforms.storage.access import redact

logger = logging.getLogger(__name__)
BEAT_S = 15.0
STALE_S = 300.0
"""Without a sign of life for so long, a run counts as ended."""

RequireEnded = Callable[[Mapping[str, Any]], None]
"""Raises UsageError where a job that is described so still runs, or nobody can say."""


class LockLostError(RuntimeError):
    """Another run has taken the output folder: this one must not write there any more."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Who holds an output folder.

    Attributes:
        token: of this lock and no other.
        user: who started the run.
        host: name of the launcher's machine.
        machine: what tells machines, and containers on one, apart for certain.
        pid: of the launcher.
        process: when that process began: another one can have the same number later.
        started_at: when the lock was taken.
        beat_at: the last sign of life.
        command: the command line, without credentials.
        job: on a service, once it has taken one.
        elsewhere: where a job was left that nothing here can ask about.
    """

    token: str
    user: str
    host: str
    machine: str
    pid: int
    process: str
    started_at: str
    beat_at: str
    command: tuple[str, ...]
    job: Mapping[str, Any] | None = None
    elsewhere: str | None = None

    def __str__(self) -> str:
        """For a message, on one line."""
        command = " ".join(self.command)
        said = f": {command}" if command else ""
        return f"{self.user}@{self.host} (process {self.pid}) started at {self.started_at}{said}"

    @property
    def is_gone(self) -> bool:
        """Whether its process, on this machine, has ended."""
        return self.machine == _machine() and _process(self.pid) != self.process

    @property
    def is_here(self) -> bool:
        """Whether its process is on this machine and lives."""
        return self.machine == _machine() and bool(self.process) and not self.is_gone

    @property
    def has_ended(self) -> bool:
        """Whether it counts as ended: its process is gone, or elsewhere and silent for long."""
        return self.is_gone or (self.silent_s > STALE_S and not self.is_here)

    @property
    def silent_s(self) -> float:
        """Seconds since the last sign of life."""
        return (_now() - datetime.datetime.fromisoformat(self.beat_at)).total_seconds()


def this_process(command: Sequence[str]) -> Owner:
    """The owner that this process would be."""
    now, machine = _now().isoformat(timespec="seconds"), _machine()
    return Owner(
        token=uuid.uuid4().hex,
        user=_user(),
        host=socket.gethostname(),
        machine=machine,
        pid=os.getpid(),
        process=_process(os.getpid()),
        started_at=now,
        beat_at=now,
        command=tuple(command),
    )


class Lock:
    """An output folder that this process holds; its signs of life are given on a thread."""

    def __init__(self, storage: Storage, uri: str, owner: Owner) -> None:
        """Nothing is written yet."""
        self._storage, self._uri, self._owner = storage, uri, owner
        self._stop, self._writing, self._keep = threading.Event(), threading.Lock(), False
        self._lost: str | None = None
        self._thread = threading.Thread(target=self._beat, name="lock", daemon=True)

    def check(self) -> None:
        """Raises LockLostError where another run has taken the folder."""
        if self._lost is not None:
            raise LockLostError(self._lost)

    def name_job(self, job: Mapping[str, Any]) -> None:
        """Says which job of a service writes here now: it, and not this process, holds the lock."""
        self._write(job=job)

    def leave_to(self, place: str | None = None) -> None:
        """Lets the lock stay when this process ends: its job goes on.

        Args:
            place: where, if nothing can ask whether the job still runs.
        """
        self._keep = True
        if place is not None:
            self._write(elsewhere=place)

    def start(self) -> None:
        """Gives signs of life from now on."""
        self._thread.start()

    def release(self) -> None:
        """Removes the lock, unless a job goes on or the lock is another's by now."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._keep or self._lost is not None:
            return
        output = self._uri.removesuffix(f"/{LOCK}")
        with contextlib.suppress(OSError):  # what stays falls free when this process is gone
            found = read(self._storage, self._uri)
            if isinstance(found, Owner) and found.token == self._owner.token:
                self._storage.remove_empty(join(output, STAGING), output)
                self._storage.remove_files([self._uri], output)

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_S):
            with contextlib.suppress(OSError):  # storage that is away for a moment
                self._write()
            if self._lost is not None:
                return

    def _write(self, **changes: Any) -> None:
        with self._writing:
            found = read(self._storage, self._uri)
            if not isinstance(found, Owner) or found.token != self._owner.token:
                who = f"taken over by {found}" if isinstance(found, Owner) else "taken away"
                self._lost = redact(f"the lock {self._uri} of this run was {who}")
                return
            now = _now().isoformat(timespec="seconds")
            self._owner = dataclasses.replace(self._owner, beat_at=now, **changes)
            self._storage.write_bytes(self._uri, _encoded(self._owner))


def read(storage: Storage, uri: str) -> Owner | str | None:
    """Who holds a lock; what is wrong with the file; None where there is none."""
    try:
        found: dict[str, Any] = json.loads(storage.read_bytes(uri))
        found["command"] = tuple(map(str, found["command"]))
        owner = Owner(**found)
        if not isinstance(owner.job, dict | None) or not math.isfinite(owner.silent_s):
            raise TypeError(f"job {owner.job!r}")
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, RecursionError) as err:
        return f"cannot be read ({type(err).__name__})"
    return owner


def refusal(
    storage: Storage, output: str, require_ended: RequireEnded, *, force: bool = False
) -> str | None:
    """Why no run may begin in an output folder now; None where one may. Changes nothing."""
    found = read(storage, join(output, LOCK))
    if found is None or force:
        return None
    how = "; when you know that it no longer runs, --force_unlock goes on"
    if isinstance(found, str):
        return f"the lock {join(output, LOCK)} {found}: another run may be there{how}"
    if found.job is not None:
        try:
            require_ended(found.job)
        except UsageError as err:
            return str(err)
        return None
    who = f"--output is in use by a run that {found}"
    if found.elsewhere is not None:
        return f"{who}; its job was left to {found.elsewhere}, which cannot be asked here{how}"
    if found.has_ended:
        return None
    wait = f"wait for it, stop it, or take another --output{how}"
    if found.is_here:
        return f"{who}; {wait}"
    silent = f"its last sign of life is {round(found.silent_s)} s old"
    if found.silent_s < -BEAT_S:
        silent = f"its clock is {-round(found.silent_s)} s ahead of the one here"
    return f"{who}; {silent}, and its lock falls free after {STALE_S:.0f} s without one; {wait}"


@contextmanager
def holding(
    storage: Storage,
    output: str,
    owner: Owner,
    require_ended: RequireEnded,
    *,
    force: bool = False,
    say: Callable[[str], None],
) -> Iterator[Lock]:
    """Holds an output folder while the ``with`` statement runs.

    Args:
        storage: how files are reached.
        output: the folder.
        owner: this process.
        require_ended: raises UsageError where the job of a lock still runs.
        force: take the lock whoever holds it.
        say: takes the line that tells whose lock was taken over.

    Raises:
        UsageError: another run holds it.
        OSError: the lock cannot be written.
    """
    uri = join(output, LOCK)
    while not storage.create(uri, _encoded(owner)):
        _take_over(storage, output, owner, require_ended, force=force, say=say)
        found = read(storage, uri)
        if isinstance(found, Owner) and found.token == owner.token:
            break
    lock = Lock(storage, uri, owner)
    lock.start()
    try:
        yield lock
    finally:
        lock.release()


def _take_over(
    storage: Storage,
    output: str,
    owner: Owner,
    require_ended: RequireEnded,
    *,
    force: bool,
    say: Callable[[str], None],
) -> None:
    """Puts this owner in the place of one that is gone; of several that try, one succeeds.

    Raises:
        UsageError: the lock is not free.
    """
    uri = join(output, LOCK)
    found = read(storage, uri)
    reason = refusal(storage, output, require_ended, force=force)
    if reason is not None:
        raise UsageError(reason)
    if found is None:  # released meanwhile
        return
    claim = _claimed(storage, output, owner, found, force=force)
    if claim is None:
        raise UsageError(
            f"another run is taking over {output} at this moment; if there is none, --force_unlock"
        )
    try:
        if read(storage, uri) == found:
            storage.write_bytes(uri, _encoded(owner))
            who = found if isinstance(found, Owner) else f"nobody knows whom: the file {found}"
            say(f"taking over {output} from a run that has ended: {who}")
            storage.remove_files(_left_claims(storage, output), output)  # of the lock that is gone
    finally:
        storage.remove_files([claim], output)


def _claimed(
    storage: Storage, output: str, owner: Owner, found: Owner | str, *, force: bool
) -> str | None:
    """The URI of a claim on this very lock, which only one run can create; None: another did.

    Whoever comes later finds another lock. A run that was killed with its claim has that claimed.
    """
    claim, holder = join(output, LOCK), found
    while True:
        token = holder.token if isinstance(holder, Owner) else "x"
        claim = f"{claim.removesuffix('.json')}-{token}.json"
        if force:
            storage.remove_files([claim], output)
        if storage.create(claim, _encoded(owner)):
            return claim
        there = read(storage, claim)
        if not isinstance(there, Owner) or not there.has_ended:
            return None
        holder = there


def _left_claims(storage: Storage, output: str) -> Iterator[str]:
    """The claims of runs that were killed with them."""
    start = LOCK.rpartition("/")[2].replace(".json", "-")
    for uri in storage.list_files(join(output, WORK), ".json"):
        if uri.rpartition("/")[2].startswith(start):
            owner = read(storage, uri)
            if isinstance(owner, Owner) and owner.has_ended:
                yield uri


def _encoded(owner: Owner) -> bytes:
    return json.dumps(dataclasses.asdict(owner), indent=2).encode() + b"\n"


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a number without a name, in a container
        return str(os.getuid())


def _machine() -> str:
    """Host, boot and space of process numbers; where it is equal, a number means one process."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _process(pid: int) -> str:
    """When a process of this machine began; empty where it has ended."""
    if not Path("/proc/self/stat").exists():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return ""
        except PermissionError:  # somebody else's
            return "alive"
        return "alive"
    try:
        # The name of a program may hold anything, brackets too: what follows the last is fields.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    values = fields.rpartition(")")[2].split()
    return "" if values[0] in "ZX" else values[19]
