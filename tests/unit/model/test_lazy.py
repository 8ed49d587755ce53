"""What is loaded at first use is loaded once, also where threads ask for it together."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from model.devices import loaded_once


class Owner:
    def __init__(self) -> None:
        self.calls = 0
        self.together = threading.Barrier(2)

    @loaded_once
    def value(self) -> object:
        """Waits a moment for another thread that computes it as well."""
        self.calls += 1
        with pytest.raises(threading.BrokenBarrierError):
            self.together.wait(timeout=0.2)
        return object()


def test_one_thread_loads_and_the_others_wait() -> None:
    owner = Owner()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: owner.value, range(4)))
    assert owner.calls == 1
    assert {id(value) for value in found} == {id(owner.value)}


def test_each_owner_has_its_own() -> None:
    first, second = Owner(), Owner()
    assert first.value is not second.value
    assert first.value is first.value


def test_the_class_gives_the_property_itself() -> None:
    assert isinstance(Owner.value, loaded_once)
