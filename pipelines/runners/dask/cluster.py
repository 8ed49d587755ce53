"""A Dask cluster: the connection, what must be there before a job, and what must stay."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from pipelines.runners.dask import bundles

logger = logging.getLogger(__name__)
CONNECT_WAIT_S = 30.0
ABSENT_WAIT_S = 60.0
"""How long the cluster may be without a scheduler or without workers."""
ANSWER_WAIT_S = 30.0
"""How long a scheduler may take to answer, until it counts as absent."""
POLL_S = 0.02
PRESENCE_POLL_S = 2.0


class ClusterError(RuntimeError):
    """The cluster cannot run the job, or not any longer."""


@contextmanager
def connected(address: str) -> Iterator[Cluster]:
    """The cluster of the scheduler at ``address``.

    Raises:
        ClusterError: nothing answers there, or Dask is not installed here.
    """
    try:
        import distributed
    except ImportError as err:
        raise ClusterError("Dask is not installed here: pip install '.[dask]'") from err
    try:
        client = distributed.Client(address, timeout=CONNECT_WAIT_S, set_as_default=False)
    except (OSError, ValueError) as err:
        raise ClusterError(f"there is no Dask scheduler at {address} ({err})") from err
    try:
        yield Cluster(client, address)
    finally:
        client.close(timeout=5)


class Cluster:
    """A cluster that is connected."""

    def __init__(self, client: Any, address: str) -> None:
        """Nothing is asked yet; ``address`` is for messages."""
        self._client, self._address = client, address
        self._asked_s = time.monotonic()
        self._absent_since_s: float | None = None
        self._num_tasks = 0

    def submit(self, run_id: str, function: Any, *arguments: Any, **how: Any) -> Any:
        """A future of ``function`` of the arguments, which may be futures."""
        self._num_tasks += 1
        key = f"{function.__name__}-{run_id}-{self._num_tasks}"
        return self._client.submit(function, *arguments, key=key, pure=False, **how)

    def places(self, futures: Sequence[Any]) -> dict[str, str]:
        """The worker on which each result lies, by its key; empty where it was lost meanwhile."""
        found = self._client.who_has(list(futures))
        return {each.key: min(map(str, found.get(each.key, ())), default="") for each in futures}

    def results(self, futures: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        """Futures with their results, as they come.

        Raises:
            ClusterError: workers died over a task, or the cluster is lost.
            Exception: what a task raised.
        """
        import distributed

        waiting = distributed.as_completed(futures, self._client.loop)
        while waiting.count():
            batch = waiting.next_batch(block=False)
            if batch:
                yield from zip(batch, self._gathered(batch), strict=True)
            else:
                self._require_presence()
                time.sleep(POLL_S)

    def _gathered(self, futures: Sequence[Any]) -> Sequence[Any]:
        """The results of futures that have ended; asks again where they do not arrive.

        ``as_completed`` would gather them itself, and never give those for which it fails once.
        """
        ask = functools.partial(self._client.gather, list(futures))
        failing_since_s: float | None = None
        while True:
            for future in futures:
                if future.status == "error":
                    self._raise(future.exception())
                if future.status == "cancelled":
                    raise ClusterError(f"the Dask cluster at {self._address} has lost the job")
            try:
                found: Sequence[Any] = self._client.sync(ask, callback_timeout=ANSWER_WAIT_S)
            except Exception as err:
                if not isinstance(err, OSError) and not any(f.status == "error" for f in futures):
                    raise
                # A connection, no answer in time, or a result that was lost and is computed anew.
                logger.debug("the results of %d tasks did not arrive: %s", len(futures), err)
                now_s = time.monotonic()
                if any(future.status != "finished" for future in futures):
                    failing_since_s = None
                elif failing_since_s is None:
                    failing_since_s = now_s
                elif now_s - failing_since_s > ABSENT_WAIT_S:
                    raise ClusterError(
                        f"the Dask cluster at {self._address} has not given results that it has "
                        f"for {ABSENT_WAIT_S:.0f} s: {err}"
                    ) from err
            else:
                return found
            self._require_presence()
            time.sleep(POLL_S)

    def _raise(self, error: Exception) -> None:
        import distributed

        if isinstance(error, distributed.KilledWorker):
            raise ClusterError(
                f"workers of the Dask cluster at {self._address} died again and again over one "
                f"bundle, perhaps of memory, or because they are broken; see their logs: {error}"
            ) from error
        raise error

    def _require_presence(self) -> None:
        now_s = time.monotonic()
        if now_s - self._asked_s < PRESENCE_POLL_S:
            return
        self._asked_s = now_s
        if self._client.status == "running" and self.num_threads(at_least=0) > 0:
            self._absent_since_s = None
        elif self._absent_since_s is None:
            self._absent_since_s = now_s
        elif now_s - self._absent_since_s > ABSENT_WAIT_S:
            raise ClusterError(
                f"the Dask cluster at {self._address} has been without a scheduler or without "
                f"workers for {ABSENT_WAIT_S:.0f} s"
            )

    def num_threads(self, at_least: int = 1) -> int:
        """Returns the threads of all workers that there are now, or ``at_least`` so many."""
        try:
            threads = self._client.sync(self._client.nthreads, callback_timeout=ANSWER_WAIT_S)
        except OSError:  # no scheduler answers
            threads = {}
        return max(at_least, sum(map(int, threads.values())))

    def require_packages(self) -> None:
        """Scheduler and workers unpickle what is sent to them.

        Raises:
            ClusterError: there are no workers, or they lack this project or have other versions.
        """
        if not self.num_threads(at_least=0):
            raise ClusterError(
                f"the Dask cluster at {self._address} has no workers; start some with: "
                f"dask worker {self._address} --nworkers 1 --nthreads 1"
            )
        try:
            there = {
                "the scheduler": self._client.run_on_scheduler(bundles.worker_versions),
                **self._client.run(bundles.worker_versions),
            }
        except Exception as err:
            raise ClusterError(
                f"the scheduler or a worker at {self._address} cannot import this project "
                f"({err}); install it there, or set PYTHONPATH on all of them"
            ) from err
        here = bundles.worker_versions()
        for where, found in there.items():
            if found != here:
                raise ClusterError(
                    f"Python and Beam are {' and '.join(found)} at {where}, but "
                    f"{' and '.join(here)} here; results could differ"
                )

    def require_resources(self, wanted: Mapping[str, float]) -> None:
        """Some worker must have what a step asks for, which would wait for ever otherwise.

        Raises:
            ClusterError: none has.
        """
        for worker in self._client.scheduler_info(n_workers=-1)["workers"].values():
            if all(worker["resources"].get(name, 0) >= n for name, n in wanted.items()):
                return
        listed = " ".join(f"{name}={number:g}" for name, number in wanted.items())
        raise ClusterError(
            f"no worker of the Dask cluster at {self._address} has {listed}, which the resource "
            f'hints ask for; start workers with: --resources "{listed}"'
        )
