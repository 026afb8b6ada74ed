"""Who computes what, that it comes together in order, and that all give up or fail together."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_evaluator import CPU, Pictures, measured, noise
from tiny_models import shards
from torch import Tensor

from hires_gan.data.settings import DataSettings
from hires_gan.data.shards import ShardSet
from hires_gan.data.waiting import Stopped, never
from hires_gan.errors import Failure
from hires_gan.evaluation.crew import Alone, Crew, chunks, gathered_in_order, in_order, in_step, own_chunks
from hires_gan.evaluation.evaluator import Evaluator, counted
from hires_gan.evaluation.instruments import Instruments
from hires_gan.evaluation.reals import Reals

SECONDS = 30.0
"""After which a process that waits for the other one counts as hanging."""


class Meeting:
    """Where two threads, which stand for processes, tell each other something."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(2, timeout=SECONDS)
        self.told: list[Any] = [None, None]


class One:
    """One of them."""

    size, neighbours = 2, 2

    def __init__(self, meeting: Meeting, rank: int) -> None:
        self.meeting, self.rank, self.first = meeting, rank, rank == 0

    def gathered(self, value: Any) -> list[Any]:
        self.meeting.told[self.rank] = value
        self.meeting.barrier.wait()
        told = list(self.meeting.told)
        self.meeting.barrier.wait()
        return told

    def any(self, flag: bool) -> bool:
        return any(self.gathered(flag))

    def collected(self, rows: Tensor) -> list[Tensor] | None:
        told = self.gathered(rows)
        return told if self.first else None

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        failed = None
        try:
            yield
        except Failure as error:
            failed = str(error)
        reasons = [one for one in self.gathered(failed) if one is not None]
        if reasons:
            raise Failure(reasons[0])


def both(work: Callable[[Crew], Any]) -> list[Any]:
    """What it gives to each of two; an exception is given back as well."""
    meeting, found = Meeting(), [None, None]

    def run(rank: int) -> None:
        try:
            found[rank] = work(One(meeting, rank))
        except Exception as error:
            found[rank] = error  # type: ignore[call-overload]

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * SECONDS)
        assert not thread.is_alive()
    assert not any(isinstance(one, threading.BrokenBarrierError) for one in found), "one waits for the other"
    return found


class Rank:
    """A place among several, for what needs no others."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


@given(st.integers(1, 300), st.integers(1, 70), st.integers(1, 5))
def test_every_sample_is_one_process_and_comes_back_in_order(count: int, length: int, size: int) -> None:
    owned = [own_chunks(count, length, Rank(rank, size)) for rank in range(size)]  # type: ignore[arg-type]
    assert sorted(number for own in owned for chunk in own for number in chunk) == list(range(count))
    assert max(map(len, owned)) - min(map(len, owned)) <= 1
    assert all(chunk in chunks(count, length) for own in owned for chunk in own)
    parts = [torch.tensor([number for chunk in own for number in chunk])[:, None] for own in owned]
    assert in_order(parts, count, length)[:, 0].tolist() == list(range(count))


def test_one_process_alone_copies_nothing() -> None:
    rows = torch.rand(10, 3)
    assert gathered_in_order(rows, 10, 4, Alone()) is rows


def test_all_give_up_or_fail_together() -> None:
    assert both(lambda crew: in_step(crew, lambda: crew.rank)) == [0, 1]

    def stopping(crew: Crew) -> int:
        def work() -> int:
            if not crew.first:
                raise Stopped
            return 1

        return in_step(crew, work)

    def failing(crew: Crew) -> int:
        def work() -> int:
            if not crew.first:
                raise Failure("no room")
            return 1

        return in_step(crew, work)

    assert [type(one) for one in both(stopping)] == [Stopped, Stopped]
    assert [str(one) for one in both(failing)] == ["no room", "no room"]


@pytest.mark.parametrize("who", [0, 1])
def test_a_stop_that_one_hears_ends_the_evaluation_of_both_wherever_it_comes(who: int, tmp_path: Path) -> None:
    folder = ShardSet(shards(tmp_path / "set", 70))

    def evaluator(crew: Crew) -> Evaluator:
        reals = Reals(folder, DataSettings(shards=str(folder.folder), workers=0), 16)
        return Evaluator(("swd",), counted(70, None, 70), reals, Instruments(), CPU, crew)

    images = torch.cat([noise(side=16).images] * 4)[:70]
    alone = measured(evaluator(Alone()), Pictures(images))
    assert both(lambda crew: measured(evaluator(crew), Pictures(images), never)) == [alone, {}]

    def stopped_after(allowed: int) -> Callable[[Crew], Any]:
        def work(crew: Crew) -> Any:
            asked = iter(range(10**6))
            return measured(evaluator(crew), Pictures(images), lambda: crew.rank == who and next(asked) >= allowed)

        return work

    for allowed in (0, 1, 2, 4, 8, 16, 32, 64):
        found = both(stopped_after(allowed))
        assert found in ([None, None], [alone, {}]), (allowed, found)
        assert allowed > 4 or found == [None, None]
    assert both(stopped_after(10**6)) == [alone, {}]
