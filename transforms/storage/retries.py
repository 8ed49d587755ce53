"""Storage that fails in a way that passes: tried again, and counted; what it finally failed of.

Clients of GCS and S3 repeat requests themselves. They are left to it, since only they know which
request of a long upload failed; what they say of it in their logs is counted here. Everything else
is repeated here.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TypeVar

import tenacity

from manifests.errors import ManifestError
from manifests.files import network_reason
from manifests.files.publishing import ShortTransferError
from model.checkpoints.fetch import RetryPolicy, is_transient, status_of
from transforms.storage.access import ARCHIVES

T = TypeVar("T")
logger = logging.getLogger(__name__)

NAMESPACE = "Storage"
TRANSIENT = "transient_"
"""Counters: this, and a status or the name of an error."""
REPEATING_CLIENTS = frozenset({"gs", "gcs", "s3", "s3a"})
_REPEATED = {
    "gcsfs": "retrying after exception",
    "s3fs": "Retryable error",
    "botocore.retryhandler": "Retry needed, action of",
}
_SAID_ELSEWHERE = ("out of retries", "non-retriable exception")


class _Uncounted:
    """What was seen on threads that Beam's counters do not reach, until one comes that they do."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def add(self, reason: str) -> None:
        with self._lock:
            self._counts[TRANSIENT + reason] += 1

    def take(self) -> Counter[str]:
        with self._lock:
            taken, self._counts = self._counts, Counter()
        return taken


_UNCOUNTED = _Uncounted()


def publish() -> None:
    """Hands what was seen to Beam's counters, where this thread runs a step of a job."""
    if "apache_beam" not in sys.modules:  # no step runs where nobody has loaded it
        return
    from apache_beam.metrics.metric import Metrics
    from apache_beam.runners.worker.statesampler import get_current_tracker

    if get_current_tracker() is not None:
        for name, count in _UNCOUNTED.take().items():
            Metrics.counter(NAMESPACE, name).inc(count)


def take_uncounted() -> dict[str, int]:
    """Counters, ``namespace/name``, of what no step of a job has published."""
    return {f"{NAMESPACE}/{name}": count for name, count in _UNCOUNTED.take().items()}


def repeated(counters: Mapping[str, int]) -> int:
    """How often, by the counters of a job, storage failed in a way that passes."""
    prefix = f"{NAMESPACE}/{TRANSIENT}"
    return sum(count for name, count in counters.items() if name.startswith(prefix))


def attempts(policy: RetryPolicy, *, client_repeats: bool) -> tenacity.Retrying:
    """The attempts at one operation.

    Args:
        policy: how many, and how far apart.
        client_repeats: whether the client has repeated what can be repeated already; only short
            reads, which it does not see, are tried again then.
    """
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(lambda err: _passes(err, client_repeats)),
        stop=tenacity.stop_after_attempt(policy.attempts),
        wait=tenacity.wait_exponential_jitter(
            initial=policy.first_wait_s, max=policy.longest_wait_s, jitter=policy.first_wait_s
        ),
        before_sleep=_count,
        reraise=True,
    )


def attempt(
    operation: Callable[[], T], uri: str, policy: RetryPolicy, *, client_repeats: bool
) -> T:
    """What ``operation`` gives, after as many attempts as it takes.

    Raises:
        OSError: FileNotFoundError, PermissionError or another, whatever type the store has for it.
        ManifestError: the operation read a manifest.
    """
    try:
        return attempts(policy, client_repeats=client_repeats)(operation)
    except Exception as err:  # every store raises types of its own
        known = as_os_error(err, uri)
        if known is err:
            raise
        raise known from err
    finally:
        publish()


def as_os_error(err: Exception, uri: str) -> Exception:
    """An error of a store as what Python calls it, whatever libraries the store is made of.

    An archive says KeyError for a member that leads to one that it lacks, a web client has errors
    of its own, and a URI that a file system cannot make sense of is a TypeError of its constructor.
    """
    cause: BaseException = err
    if isinstance(err, FileNotFoundError) and err.__cause__ is not None:
        cause = err.__cause__  # fsspec's HTTP says FileNotFoundError of every failure
    status = status_of(cause)
    said = network_reason(cause) if status is None or cause is not err else None
    words = " ".join(str(err).split())[:300]
    text = f"{uri}: {said or words or type(err).__name__}"
    if status in (401, 403):
        return PermissionError(text)
    in_archive = uri.partition("://")[0] in ARCHIVES
    if status in (404, 410) or (in_archive and isinstance(err, KeyError)):
        return FileNotFoundError(text)
    if cause is not err and isinstance(cause, ValueError):  # nothing was asked for it
        return OSError(f"{uri}: no address that can be read: {cause}")
    if isinstance(err, FileNotFoundError):
        return FileNotFoundError(text if said else f"{uri}: no such file or object")
    if isinstance(err, ImportError | MemoryError | ManifestError):
        return err
    if said:
        return OSError(text)
    return err if isinstance(err, OSError) else OSError(f"{uri}: {type(err).__name__}: {words}")


def _passes(err: BaseException, client_repeats: bool) -> bool:
    cause = _cause(err)
    return isinstance(cause, ShortTransferError) or (not client_repeats and is_transient(cause))


def _cause(err: BaseException) -> BaseException:
    return err.__cause__ if isinstance(err, ManifestError) and err.__cause__ is not None else err


def _count(state: tenacity.RetryCallState) -> None:
    error = None if state.outcome is None else state.outcome.exception()
    if error is not None:
        cause = _cause(error)
        _UNCOUNTED.add(str(status_of(cause) or type(cause).__name__))
        logger.debug("attempt %d failed: %s", state.attempt_number, cause)


class _Listener(logging.Filter):
    """Counts what a client says that it repeats; leaves out what it says beside an exception."""

    def __init__(self, name: str, level: int) -> None:
        super().__init__()
        self._phrase, self._level = _REPEATED[name], level
        self._client = name.partition(".")[0]

    def filter(self, record: logging.LogRecord) -> bool:
        said = record.getMessage()
        if said_of_itself := self._phrase in said:
            _UNCOUNTED.add(self._client)
        left_out = not said_of_itself and any(phrase in said for phrase in _SAID_ELSEWHERE)
        return record.levelno >= self._level and not left_out


def listen_to_clients() -> None:
    """Counts what the clients of GCS and S3 repeat from now on; nothing happens the second time."""
    for name in _REPEATED:
        client = logging.getLogger(name)
        if not any(isinstance(each, _Listener) for each in client.filters):
            client.addFilter(_Listener(name, client.getEffectiveLevel()))
            client.setLevel(logging.DEBUG)
