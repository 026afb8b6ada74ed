"""Work beside the one who asks whether to stop: it can be left, and what it gives or raises comes through."""

from __future__ import annotations

import threading

import pytest

from hires_gan.data.waiting import Stopped, never
from hires_gan.evaluation import beside as module
from hires_gan.evaluation.beside import beside


def test_what_comes_of_it_comes_through() -> None:
    assert beside(lambda: threading.current_thread() is threading.main_thread(), never) is False

    def failing() -> int:
        raise TimeoutError("as it happens")

    with pytest.raises(TimeoutError, match="as it happens"):
        beside(failing, never)


def test_it_is_left_when_somebody_asks_and_goes_on_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLICE", 0.01)
    end, ended = threading.Event(), threading.Event()
    asked: list[bool] = []

    def work() -> None:
        assert end.wait(60)
        ended.set()

    def third_time() -> bool:
        asked.append(threading.current_thread() is threading.main_thread())
        return len(asked) == 3

    with pytest.raises(Stopped):
        beside(work, third_time)
    assert asked == [True] * 3, "by the thread that waits, which may meet other processes"
    assert not ended.is_set()
    end.set()
    assert ended.wait(60)


def test_what_is_done_counts_also_where_it_is_stopped_as_late(monkeypatch: pytest.MonkeyPatch) -> None:
    end = threading.Event()

    def work() -> int:
        assert end.wait(60)
        return 7

    def ending() -> bool:
        end.set()
        return False

    monkeypatch.setattr(module, "SLICE", 0.01)
    assert beside(work, ending) == 7
