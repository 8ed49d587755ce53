"""What several tests of whole jobs share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import browser
import tiny_model
import tone_runs
from dask_cluster import DaskCluster, dask_cluster


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The checkpoint of a tiny network with random weights."""
    return tiny_model.write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with mixtures and references."""
    folder = tmp_path_factory.mktemp("clips")
    tone_runs.write_mixtures(folder)
    return folder


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    if browser.CHROMIUM is None or browser.DRIVER is None:
        pytest.skip("needs chromium and chromedriver")
    with browser.chromium(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def chromium(started: browser.Browser) -> Iterator[browser.Browser]:
    with started.tab():
        yield started


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    """Not for all modules at once: each of its idle processes takes a fortieth of a core."""
    with dask_cluster(tmp_path_factory.mktemp("cluster"), []) as found:
        yield found
