"""The engine on a Dask cluster: one feature after another, against Beam's own runner."""

from __future__ import annotations

import ast
import dataclasses
import re
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import distributed
import pyarrow.parquet as pq
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineResult
from apache_beam.transforms.periodicsequence import PeriodicImpulse

import engine_features
import engine_graphs
from dask_cluster import DaskCluster, dask_cluster
from pipelines import launch
from pipelines.config import IN_PROCESS, Execution
from pipelines.runners import DASK, Measurements, measurements_of
from pipelines.runners.dask import cluster as cluster_module
from pipelines.runners.dask import runner
from pipelines.runners.dask.cluster import ClusterError


@pytest.fixture
def cluster(scheduler: DaskCluster) -> DaskCluster:
    scheduler.keep(("--resources", "MEMORY=1e9"), ())
    return scheduler


def _run(graph: engine_graphs.Graph, cluster: DaskCluster | str | None) -> PipelineResult:
    """Runs a graph on a cluster, which may be named by its address; None: in this process."""
    where = Execution(
        runner=IN_PROCESS if cluster is None else DASK, num_workers=1, num_threads=1,
        resource_hints={}, isolate_decoder=False,
        progress="none", log_level="warning",
        cluster=cluster.address if isinstance(cluster, DaskCluster) else cluster,
    )  # fmt: skip
    return engine_graphs.run(graph, where, PipelineOptions([]))


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


@dataclasses.dataclass(frozen=True)
class Expected:
    """What a graph with every feature kept, and what was measured, on Beam's own runner."""

    kept: dict[str, list[str]]
    measured: Measurements


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Expected:
    folder = tmp_path_factory.mktemp("alone")
    measured = measurements_of(_run(engine_features.every_feature(folder), None))
    return Expected(engine_graphs.kept(folder), measured)


def test_no_scheduler_and_no_workers_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "CONNECT_WAIT_S", 1.0)
    nowhere = "tcp://127.0.0.1:9"
    with (
        pytest.raises(ClusterError, match=re.escape(f"no Dask scheduler at {nowhere}")),
        cluster_module.connected(nowhere),
    ):
        pass
    with (
        distributed.LocalCluster(
            n_workers=0, processes=False, protocol="tcp://", dashboard_address=None
        ) as empty,
        pytest.raises(ClusterError, match="no workers; start some with: dask worker tcp://"),
    ):
        _run(engine_graphs.failing(), empty.scheduler_address)


def test_every_feature_gives_what_beams_own_runner_gives(
    cluster: DaskCluster, tmp_path: Path, expected: Expected
) -> None:
    measured = measurements_of(_run(engine_features.every_feature(tmp_path), cluster))
    assert engine_graphs.kept(tmp_path) == expected.kept
    assert len(expected.kept["finished"]) == len(engine_graphs.NUMBERS)
    assert measured.counters == expected.measured.counters
    assert measured.counters["probe/seen"] == len(engine_graphs.NUMBERS)
    assert measured.distributions["probe/size"] == expected.measured.distributions["probe/size"]


def test_beams_own_parquet_sink_writes_every_row(cluster: DaskCluster, tmp_path: Path) -> None:
    _run(engine_graphs.parquet(tmp_path), cluster)
    found = [n for file in tmp_path.glob("part*") for n in pq.read_table(file)["n"].to_pylist()]
    assert sorted(found) == list(engine_graphs.NUMBERS)


def test_a_reshuffle_spreads_elements_and_nothing_is_computed_twice(
    cluster: DaskCluster, tmp_path: Path
) -> None:
    _run(engine_graphs.bundles(tmp_path), cluster)
    kept = engine_graphs.kept(tmp_path)
    before, behind = ([ast.literal_eval(v) for v in kept[n]] for n in ("before", "behind"))
    assert sorted(number for number, _ in before) == list(engine_graphs.NUMBERS)
    assert sorted(number for number, _ in behind) == list(engine_graphs.NUMBERS)
    assert len({process for _, process in before}) == 1
    assert len({process for _, process in behind}) == 2
    assert kept["again"] == [str(len(engine_graphs.NUMBERS))]


def test_a_large_shuffle_is_parted_and_loses_nothing(
    cluster: DaskCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: Expected
) -> None:
    monkeypatch.setattr(runner, "PART_BYTES", 20)
    monkeypatch.setattr(runner, "MAX_PARTS", 4)
    _run(engine_features.every_feature(tmp_path), cluster)
    assert engine_graphs.kept(tmp_path) == expected.kept


@pytest.mark.parametrize(("joined_bytes", "most"), [(2**20, 2), (0, 40)])
def test_bundles_of_a_worker_are_split_together(
    joined_bytes: int,
    most: int,
    cluster: DaskCluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """40 bundles and 4 parts are 160 tasks one by one, and 8 on two workers."""
    tasks: Counter[str] = Counter()
    submit = cluster_module.Cluster.submit

    def counted(self: Any, run_id: str, function: Any, *given: Any, **how: Any) -> Any:
        tasks[function.__name__] += 1
        return submit(self, run_id, function, *given, **how)

    monkeypatch.setattr(cluster_module.Cluster, "submit", counted)
    monkeypatch.setattr(runner, "PART_BYTES", 1)
    monkeypatch.setattr(runner, "MAX_PARTS", 4)
    monkeypatch.setattr(runner, "BUNDLE_ELEMENTS", 1)
    monkeypatch.setattr(runner, "JOINED_BYTES", joined_bytes)
    _run(engine_graphs.grouped(tmp_path, 40), cluster)
    totals = {f"key {n}": sum(range(n, 40, 7)) for n in range(7)}
    assert engine_graphs.kept(tmp_path)["totals"] == sorted(map(repr, totals.items()))
    assert 0 < tasks["split"] <= most
    assert tasks["part_of"] == 4 * tasks["split"]
    assert joined_bytes or tasks["split"] == 40


def test_hints_choose_the_worker_and_one_that_nobody_has_is_refused(
    cluster: DaskCluster, tmp_path: Path
) -> None:
    with pytest.raises(ClusterError, match=r'no worker .* has GPU=1.*--resources "GPU=1"'):
        _run(engine_graphs.hinted(tmp_path), cluster)
    strong = cluster.add_worker("--resources", "GPU=1")
    cluster.wait_for_workers(3)
    try:
        _run(engine_graphs.hinted(tmp_path), cluster)
    finally:
        strong.kill()  # one that closes in peace may wait for long
        strong.wait()
    found = [ast.literal_eval(value) for value in engine_graphs.kept(tmp_path)["hinted"]]
    assert sorted(number for number, _ in found) == list(engine_graphs.NUMBERS)
    assert {process for _, process in found} == {strong.pid}


def test_what_the_engine_does_not_do_is_refused(cluster: DaskCluster) -> None:
    with pytest.raises(ValueError, match="stateful"):
        _run(engine_graphs.stateful(), cluster)
    endless = engine_graphs.Graph(lambda root: root | PeriodicImpulse())
    with pytest.raises((ValueError, NotImplementedError), match=r"unbounded|watermark"):
        _run(endless, cluster)


def test_a_step_that_fails_ends_the_run_with_its_reason(cluster: DaskCluster) -> None:
    with pytest.raises(ArithmeticError, match="element 7 cannot be done") as caught:
        _run(engine_graphs.failing(), cluster)
    assert "element 7 cannot be done" in launch.first_cause(caught.value)


@pytest.mark.parametrize("failures", [1, 10**6])
def test_results_that_do_not_arrive_are_asked_for_again_for_a_while(
    failures: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dask's own ``as_completed`` never gives what it cannot gather at once, and waits for ever."""
    monkeypatch.setattr(cluster_module, "ABSENT_WAIT_S", 0.5)
    asked = 0
    ask = distributed.client.retry_operation

    async def busy(*given: Any, **more: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked <= failures:
            raise TimeoutError("timed out during handshake")
        return await ask(*given, **more)

    monkeypatch.setattr(distributed.client, "retry_operation", busy)
    with (
        distributed.LocalCluster(
            n_workers=1, processes=False, protocol="tcp://", dashboard_address=None
        ) as local,
        cluster_module.connected(local.scheduler_address) as found,
    ):
        futures = [found.submit("run", abs, -number) for number in range(3)]
        if failures > 1:
            with pytest.raises(ClusterError, match=r"has not given results .* during handshake"):
                list(found.results(futures))
        else:
            assert sorted(result for _, result in found.results(futures)) == [0, 1, 2]
    assert asked > 1


@pytest.mark.slow
def test_the_run_goes_on_when_a_worker_is_killed(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "kept")
    with dask_cluster(tmp_path / "cluster", [(), ()]) as mortal:
        graph = engine_graphs.slow(folder, count=30, each_s=0.2)
        job = threading.Thread(target=_run, args=(graph, mortal), daemon=True)
        job.start()
        while not engine_graphs.started(folder):
            assert job.is_alive()
            time.sleep(0.05)
        mortal.workers[0].kill()
        job.join()
    assert sorted(map(int, engine_graphs.kept(folder)["slow"])) == list(range(30))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gone", "how"), [("worker", signal.SIGKILL), ("scheduler", signal.SIGSTOP)]
)
def test_a_cluster_that_is_gone_ends_the_run(
    gone: str, how: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "ABSENT_WAIT_S", 3.0)
    monkeypatch.setattr(cluster_module, "ANSWER_WAIT_S", 3.0)
    folder = _folder(tmp_path / "kept")
    with dask_cluster(tmp_path / "cluster", [()]) as doomed:
        process = {"worker": doomed.workers[0], "scheduler": doomed.scheduler}[gone]

        def end() -> None:
            while not engine_graphs.started(folder):
                time.sleep(0.05)
            process.send_signal(how)

        killer = threading.Thread(target=end, daemon=True)
        killer.start()
        with pytest.raises(ClusterError, match="without a scheduler or without workers"):
            _run(engine_graphs.slow(folder, count=1, each_s=engine_graphs.FOREVER_S), doomed)
