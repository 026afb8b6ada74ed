"""Who computes what, that it comes together in order, and that all give up or fail together."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
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
from hires_gan.evaluation import crew as crews
from hires_gan.evaluation.crew import Alone, Crew, by_first, chunks, gathered_in_order, in_order, in_step, own_chunks
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


def test_the_first_works_and_meets_the_others_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crews, "SIGN", 0.0)  # whenever it asks

    def work(asked: Callable[[], bool]) -> str:
        return "stop" if any(asked() for _ in range(5)) else "done"

    def counted(crew: Crew) -> tuple[str | None, int]:
        asked: list[int] = []
        return by_first(crew, work, lambda: bool(asked.append(1))), len(asked)  # type: ignore[func-returns-value]

    assert both(counted) == [("done", 5), (None, 6)]  # the last time when it is over
    assert counted(Alone()) == ("done", 5)


@pytest.mark.parametrize("sign", [0.0, 1000.0])
@pytest.mark.parametrize("who", [0, 1])
def test_whoever_is_to_stop_ends_the_work_of_the_first(who: int, sign: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crews, "SIGN", sign)

    def work(asked: Callable[[], bool]) -> None:
        for _ in range(5):
            if asked():
                raise Stopped

    assert [type(one) for one in both(lambda crew: by_first(crew, work, lambda: crew.rank == who))] == [Stopped] * 2


@pytest.mark.parametrize("sign", [0.0, 1000.0])
def test_where_the_first_fails_all_do(sign: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crews, "SIGN", sign)

    def work(asked: Callable[[], bool]) -> None:
        asked()
        raise Failure("no room")

    assert [str(one) for one in both(lambda crew: by_first(crew, work, never))] == ["no room", "no room"]


def full() -> int:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. See documentation for more\nand more")


NO_ROOM = (
    "the GPU has no room for the evaluation (CUDA out of memory. Tried to allocate 2.00 GiB): let nothing else run on "
    "it, or run hires-gan evaluate by itself, with CUDA_VISIBLE_DEVICES= on the CPU; evaluation.every_kimg=null trains "
    "without"
)


@pytest.mark.parametrize(
    "work",
    [
        lambda crew: in_step(crew, full),
        lambda crew: in_step(crew, lambda: full() if crew.first else 1),
        lambda crew: by_first(crew, lambda asked: full(), never),
    ],
)
def test_where_a_gpu_is_full_all_end_with_a_sentence(work: Callable[[Crew], Any]) -> None:
    found = both(work)
    assert [(type(one), str(one)) for one in found] == [(Failure, NO_ROOM)] * 2
    with pytest.raises(Failure) as error:
        work(Alone())
    assert str(error.value) == NO_ROOM


def slow_first(folder: Path, seconds: float) -> list[list[str]]:
    """What two processes say of each way in which the work of the first can end."""
    script, environment = Path(__file__).with_name("slow_first.py"), os.environ | {"GLOO_SOCKET_IFNAME": "lo"}
    commands = [[sys.executable, str(script), str(rank), str(folder / "store"), str(seconds)] for rank in range(2)]
    started = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for command in commands]
    try:
        return [process.communicate(timeout=400)[0].splitlines() for process in started]
    finally:
        for process in started:
            process.kill()


@pytest.mark.slow
def test_others_wait_for_several_times_as_long_as_for_one_that_is_silent(tmp_path: Path) -> None:
    first, other = ([re.sub(r" after \d+ s$", "", line) for line in lines] for lines in slow_first(tmp_path, 20.0))
    assert first[:4] == ["7", "Failure no room", "Stopped ", "Stopped "], other
    assert other[:6] == ["None", "Elsewhere ", "Stopped ", "Stopped ", "Elsewhere ", "Elsewhere "]
    assert first[4:] == [f"Failure {NO_ROOM}", f"Failure rank 1: {NO_ROOM.replace('2.00', '3.00')}"]
    assert re.match(r"Failure rank 1 has lost another process \(", other[6])


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
