"""Which failures of a store pass by themselves, and how often to try again."""

from __future__ import annotations

import dataclasses
import errno

_LASTING = (PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
_PASSING = (errno.ECONNRESET, errno.EPIPE, errno.EIO, errno.EBUSY, errno.EREMOTEIO)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often a transient failure is tried again; the wait doubles up to the longest."""

    attempts: int = 5
    first_wait_s: float = 0.5
    longest_wait_s: float = 20.0

    def __post_init__(self) -> None:
        """Checks that at least one attempt is made."""
        if self.attempts < 1:
            raise ValueError(f"attempts={self.attempts}: expected 1 or more")


def is_transient(err: BaseException) -> bool:
    """Whether trying again can help: lost connections, timeouts, busy or failing servers."""
    status = status_of(err)
    if status is not None:
        return status in (408, 429) or status >= 500
    if isinstance(err, ConnectionError | TimeoutError):
        return True
    if isinstance(err, FileNotFoundError):  # fsspec's HTTP says so of every failure but the cause
        return err.__cause__ is not None and is_transient(err.__cause__)
    if isinstance(err, _LASTING):
        return False
    if isinstance(err, OSError):  # a store's own subclass carries no number; the disk's errors do
        return err.errno is None or err.errno in _PASSING
    return any(base.__name__ == "ClientError" for base in type(err).__mro__)  # aiohttp's


def status_of(err: BaseException) -> int | None:
    """The HTTP status that an error of a store stands for; None where it says none."""
    if isinstance(err, OSError) and str(err).startswith("Forbidden: "):  # gcsfs
        return 403
    status = getattr(err, "status", None)
    if status is None:
        status = getattr(err, "code", getattr(getattr(err, "response", None), "status_code", None))
    return status if isinstance(status, int) else None
