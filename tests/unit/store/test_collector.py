"""A large store is frozen out of the collector's rounds; a small one is not."""

from __future__ import annotations

import gc

import pytest

from orchestrator.store import collector
from orchestrator.store.collector import WRITES_BETWEEN, CollectorRelief, paused


@pytest.fixture(autouse=True)
def thaw():
    yield
    gc.unfreeze()


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []
    monkeypatch.setattr(collector.gc, "collect", lambda: calls.append("collect"))
    monkeypatch.setattr(collector.gc, "freeze", lambda: calls.append("freeze"))
    return calls


def test_a_large_store_is_frozen_after_many_writes(frozen: list[str]) -> None:
    relief = CollectorRelief()
    relief.wrote(WRITES_BETWEEN - 1, lambda: 50_000)
    assert frozen == []
    relief.wrote(1, lambda: 50_000)
    assert frozen == ["collect", "freeze"]
    relief.wrote(WRITES_BETWEEN - 1, lambda: 50_000)
    assert len(frozen) == 2


def test_a_small_store_never_is(frozen: list[str]) -> None:
    relief = CollectorRelief()
    for _ in range(10):
        relief.wrote(50_000, lambda: 1_000)
    assert frozen == []


def test_the_collector_pauses_and_goes_on_also_after_an_error() -> None:
    with pytest.raises(ValueError), paused():
        assert not gc.isenabled()
        raise ValueError
    assert gc.isenabled()


def test_what_was_made_meanwhile_is_frozen_before_the_collector_goes_on(frozen: list[str]) -> None:
    with paused():
        pass
    assert frozen == ["freeze"]
