"""What steps take of a process itself, and the process for whom the others wait."""

from __future__ import annotations

import pytest
import torch

from hires_gan.training import pace as module
from hires_gan.training.activity import current
from hires_gan.training.pace import PATIENCE, Own, Pace, Stragglers, spread
from hires_gan.training.status import Speed, StatusLine

CPU = torch.device("cpu")


class Hands:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Hands:
    clock = Hands()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_waiting_for_others_is_not_ones_own(hands: Hands) -> None:
    pace = Pace(CPU)
    for own, waits in ((2.0, 5.0), (3.0, 0.5), (4.0, 0.0)):
        with pace.step(8):
            hands.now += own / 2
            with pace.waiting("sum of gradients"):
                assert current().waits
                hands.now += waits
            hands.now += own / 2
        hands.now += 100  # between steps
        with pace.waiting("step boundary"):
            hands.now += 100
    assert pace.lap() == Own(3.0, 8.0)
    assert pace.lap() is None


def test_steps_without_samples_are_not_measured(hands: Hands) -> None:
    pace = Pace(CPU)
    with pace.step(0), pace.waiting("sum of gradients"):
        hands.now += 7
    assert pace.lap() is None


def test_a_step_that_fails_is_not_counted(hands: Hands) -> None:
    pace = Pace(CPU)
    with pytest.raises(ZeroDivisionError), pace.step(8):
        hands.now += 7
        raise ZeroDivisionError
    with pace.step(4):
        hands.now += 1
    assert pace.lap() == Own(1.0, 4.0)


def test_no_more_than_so_many_steps_are_kept(hands: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST", 2)
    pace = Pace(CPU)
    for seconds in (1.0, 3.0, 50.0):
        with pace.step(1), pace.waiting("sum"):
            pass
        hands.now += 1
        with pace.step(1):
            hands.now += seconds
    found = pace.lap()
    assert found is not None and found.seconds == 0.5


def test_the_slowest_is_compared_with_the_median() -> None:
    found = spread([Own(1.0, 4), Own(1.2, 4), Own(3.0, 4)])
    assert found is not None
    assert (found.slowest, found.slowest_seconds, found.median_seconds, found.excess) == (2, 3.0, 1.2, 2.5)
    assert found.words == "slowest rank 2 at 2.50x the median"
    assert found.metrics == {"ranks/slowest": 2, "ranks/slowest_seconds": 3.0, "ranks/median_seconds": 1.2}


def test_of_two_the_slow_one_is_compared_with_the_other() -> None:
    found = spread([Own(4.0, 4), Own(1.0, 4)])
    assert found is not None
    assert (found.slowest, found.excess) == (0, 4.0)


def test_those_without_samples_are_left_out_and_more_samples_may_take_longer() -> None:
    assert spread([Own(4.0, 4), None]) is None
    assert spread([]) is None
    found = spread([Own(2.0, 8), Own(1.0, 4), None, None])
    assert found is not None and found.excess == 1.0


def test_a_straggler_is_told_of_once_and_again_after_it_was_well() -> None:
    stragglers = Stragglers(["a", "b", "c"])
    slow = spread([Own(1.0, 4), Own(2.0, 4), Own(1.0, 4)])
    well = spread([Own(1.0, 4), Own(1.4, 4), Own(1.0, 4)])
    other = spread([Own(2.0, 4), Own(1.0, 4), Own(1.0, 4)])
    said = [stragglers.look(slow) for _ in range(2 * PATIENCE)]
    assert [text is not None for text in said] == [number == PATIENCE - 1 for number in range(2 * PATIENCE)]
    assert said[PATIENCE - 1] is not None
    assert "rank 1 (b) holds up the others: its own part of a step takes 2 s, and the median 1 s" in said[PATIENCE - 1]
    assert [stragglers.look(found) for found in (slow, well, slow, slow, other, slow, slow)] == [None] * 7
    assert stragglers.look(slow) is not None
    assert stragglers.look(None) is None


def test_the_status_line_shows_the_slowest(capsys: pytest.CaptureFixture[str]) -> None:
    StatusLine("small", 0, 10).show(10, "4x4", Speed(10, 1.0, 0.0), 0.0, {}, ranks="slowest rank 2 at 2.50x the median")
    assert "| slowest rank 2 at 2.50x the median\n" in capsys.readouterr().err


@pytest.mark.gpu
def test_on_a_gpu_waits_are_those_of_its_stream() -> None:
    device = torch.device("cuda")
    pace = Pace(device)
    with pace.step(1):
        with pace.waiting("sum"):
            torch.cuda._sleep(200_000_000)
        torch.cuda._sleep(20_000_000)
    first = pace.lap()
    with pace.step(1):
        torch.cuda._sleep(220_000_000)
    second = pace.lap()
    assert first is not None and second is not None
    assert 0 < first.seconds < second.seconds / 3
