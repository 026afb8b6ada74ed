"""The watch over processes: what hangs ends and is reported, a signal is heard everywhere, the grace runs over."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from forked_ranks import LIMIT, Ranks
from torch.distributed import HashStore  # type: ignore[attr-defined]
from watched import LATE, train

from hires_gan.training.activity import current, doing, progressing, waiting
from hires_gan.training.beats import Beat, Exchange, Heard, own_beat
from hires_gan.training.profiling import span
from hires_gan.training.run_folder import RunFolder
from hires_gan.training.signals import StopRequest
from hires_gan.training.silence import Silences
from hires_gan.training.stacks import own_stacks
from hires_gan.training.standing import Standing, advice, in_words, odd_ones, page, ranks
from hires_gan.training.watch import Watch
from hires_gan.training.world import World

# --- what a process is doing ------------------------------------------------------------------------------------------


def test_the_innermost_activity_is_the_current_one() -> None:
    before = current()
    with span("phase: generator"):
        assert current().name == "phase: generator"
        assert not current().waits
        with waiting("sum of gradients"):
            assert (current().name, current().waits) == ("sum of gradients", True)
            assert current().meetings == before.meetings + 1
        assert current().name == "phase: generator"
        with pytest.raises(ZeroDivisionError), doing("data"):
            raise ZeroDivisionError
    assert current().name == before.name
    assert current().progress == before.progress + 6
    progressing()
    assert current().progress == before.progress + 7


def test_own_stacks_begin_with_the_main_thread() -> None:
    here, go = threading.Event(), threading.Event()

    def waits_in_a_thread() -> None:
        here.set()
        go.wait(LIMIT)

    thread = threading.Thread(target=waits_in_a_thread, name="reader")
    thread.start()
    assert here.wait(LIMIT)
    text = own_stacks()
    go.set()
    thread.join()
    assert text.startswith("thread MainThread, ")
    assert "test_own_stacks_begin" in text.partition("thread reader")[0]
    assert "waits_in_a_thread" in text.partition("thread reader")[2]


# --- where they stand -------------------------------------------------------------------------------------------------


def standing(rank: int, activity: str, waits: bool = False, meetings: int = 7, answers: bool = True) -> Standing:
    beat = Beat(9, f"host{rank}", 100 + rank, 320, activity, 30.0, waits, 50, meetings, None)
    return Standing(rank, beat, 1.0 if answers else 40.0, answers)


@pytest.mark.parametrize(
    ("standings", "expected"),
    [
        ([standing(0, "sum", True), standing(1, "data"), standing(2, "sum", True)], [1]),
        ([standing(0, "sum", True), standing(1, "sum", True, answers=False)], [1]),
        ([standing(0, "sum", True, 8), standing(1, "sum", True, 7), standing(2, "sum", True, 8)], [1]),
        ([standing(0, "sum", True), standing(1, "sum", True)], []),
        ([standing(0, "data"), standing(1, "data")], []),
        ([standing(0, "sum", True), Standing(1, None, 40.0, False)], [1]),
    ],
)
def test_the_odd_one_is_found(standings: list[Standing], expected: list[int]) -> None:
    assert odd_ones(standings) == expected


def test_standings_in_words_begin_with_the_odd_one() -> None:
    found = [standing(0, "sum", True), standing(1, "data"), *(standing(rank, "sum", True) for rank in (2, 3))]
    assert in_words(found) == "rank 1 in data for 31 s; ranks 0, 2-3 waiting for the others (sum) for 31 s"
    assert advice(found) == "look first at rank 1 (host1, process 101)"
    lost = [standing(0, "sum", True), standing(1, "phase: main", answers=False)]
    assert in_words(lost).startswith("rank 1 not answering, last in phase: main for 40 s; rank 0 waiting")
    assert "the network" in advice([standing(0, "sum", True), standing(1, "sum", True)])
    assert advice([standing(0, "data")]) == "its stack says where"


def test_a_report_has_every_process_with_or_without_its_stack() -> None:
    text = page("It hangs.", [standing(0, "sum", True), standing(1, "data", answers=False)], {0: "thread main"})
    assert text.startswith(
        "It hangs.\n\n=== rank 0 (host0, process 100): waiting for the others (sum) for 31.0 s; 320 "
    )
    assert "\n\nthread main\n\n=== rank 1 (host1, process 101): not answering, last in data for 40.0 s" in text
    assert text.rpartition("===")[2].count("No stack") == 1


@pytest.mark.parametrize(
    ("numbers", "expected"), [([3], "rank 3"), ([5, 0, 1, 2], "ranks 0-2, 5"), ([0, 2], "ranks 0, 2")]
)
def test_ranks_are_told_in_runs(numbers: list[int], expected: str) -> None:
    assert ranks(numbers) == expected


def test_a_beat_without_progress_is_heard_and_changes_nothing() -> None:
    first = Beat(1, "h", 1, 0, "data", 0.0, False, 5, 0, None)
    heard = Heard(first, 10.0, 10.0)
    heard.hear(Beat(**{**vars(first), "number": 2}), 11.0)
    assert (heard.at, heard.changed) == (11.0, 10.0)
    heard.hear(heard.beat, 12.0)
    assert (heard.at, heard.changed) == (11.0, 10.0), "it is still the same beat"
    heard.hear(Beat(**{**vars(first), "number": 3, "progress": 6}), 13.0)
    assert (heard.at, heard.changed) == (13.0, 13.0)


# --- signals ----------------------------------------------------------------------------------------------------------


def test_a_signal_elsewhere_is_heard_but_not_obeyed_before_all_agree(capsys: pytest.CaptureFixture[str]) -> None:
    stop = StopRequest(alone=False)
    before = current().progress
    assert not stop.interrupted()
    stop.hear(3, "SIGTERM")
    stop.hear(4, "SIGINT")
    assert (stop.interrupted(), stop.wanted, stop.name, stop.agreed) == (True, None, "SIGTERM", False)
    assert current().progress == before + 2
    stop.agree(True)
    assert stop.agreed
    assert capsys.readouterr().err.count("SIGTERM received by rank 3: ") == 1


def test_a_second_signal_changes_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        since = stop.since
        os.kill(os.getpid(), signal.SIGINT)
        assert (stop.wanted, stop.name, stop.since, stop.agreed) == ("SIGTERM", "SIGTERM", since, True)
    assert capfd.readouterr().err.count("received") == 1


# --- processes --------------------------------------------------------------------------------------------------------


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Ranks]:
    with closing(Ranks(tmp_path)) as found:
        yield found


def failure(folder: Path) -> str:
    """The message of `status.json`."""
    status = json.loads((folder / "run" / "status.json").read_text())
    assert status["state"] == "failed"
    return str(status["message"])


def test_one_process_that_hangs_ends_and_says_where(processes: Ranks) -> None:
    processes.start(1, train, "0:sleeps", 4, 20)
    said = processes.ended(0, 1)
    report = processes.folder / "run" / "hang-000000000040.txt"
    assert "error: the run has not got on for 4 s (backend.hang_after): rank 0 in data for" in said
    assert f"all stacks are in {report}" in said
    assert failure(processes.folder) in said
    assert "in misbehave\n    time.sleep(1000)" in report.read_text()


@pytest.mark.parametrize("what", ["sleeps", pytest.param(LATE, marks=pytest.mark.slow)])
def test_the_one_for_whom_all_wait_is_named_with_its_stack(processes: Ranks, what: str) -> None:
    processes.start(3, train, f"1:{what}", 8, 20, agent=True)
    said = [processes.ended(rank, 1) for rank in range(3)]
    assert "rank 1 in data for" in said[0]
    assert "; ranks 0, 2 waiting for the others (a word with all) for" in said[0]
    assert "look first at rank 1 (" in said[0]
    assert not any("error" in text.lower() for text in said[1:]), said
    report = (processes.folder / "run" / "hang-000000000040.txt").read_text()
    of_rank_1 = report.partition("=== rank 1 (")[2].partition("=== rank 2 (")[0]
    assert "time.sleep(1000)" in of_rank_1
    assert report.count("world.any(False)") == 2


def test_a_long_evaluation_is_no_hang_and_ends_at_a_signal_to_another(processes: Ranks) -> None:
    """Which waits for the first one in native code, where no handler of Python's runs."""
    processes.start(2, train, "0:evaluates", 4, 20)
    processes.ready()
    time.sleep(9)  # more than twice as long as a hang is allowed to be
    assert processes.running == [0, 1]
    for _ in range(2):  # a second signal breaks nothing
        processes.signal(1, signal.SIGTERM)
    said = [processes.ended(rank, 75) for rank in range(2)]
    assert "SIGTERM received by rank 1" in said[0]
    assert "left the evaluation" in said[0]
    assert said[1].count("SIGTERM received") == 1
    assert json.loads((processes.folder / "run" / "status.json").read_text())["state"] == "preempted"


def test_a_signal_before_the_first_step_stops_the_run_at_its_first_boundary(processes: Ranks) -> None:
    """Though preparing the run took longer than the grace."""
    processes.start(2, train, "1:gets a signal early", None, 6)
    said = [processes.ended(rank, 75) for rank in range(2)]
    assert "error" not in said[0] + said[1]
    assert json.loads((processes.folder / "run" / "status.json").read_text())["nimg"] == 8


def test_what_does_not_stop_within_the_grace_ends(processes: Ranks) -> None:
    processes.start(2, train, "0:sleeps at a signal", None, 8)
    processes.ready()
    processes.signal(1, signal.SIGTERM)
    said = [processes.ended(rank, 1) for rank in range(2)]
    assert "error: SIGTERM came more than 8 s ago (backend.grace)" in said[0]
    assert "rank 0 in checkpoint for" in said[0]
    assert failure(processes.folder) in said[0]
    assert "error" not in said[1].lower()
    assert (processes.folder / "run" / "grace-000000000040.txt").read_text().count("=== rank ") == 2


@pytest.mark.slow
@pytest.mark.parametrize("what", ["stopped", "holds"])
def test_a_process_that_cannot_answer_is_named(processes: Ranks, what: str) -> None:
    """It is stopped, or it keeps Python's lock: then its stack is on its own standard error."""
    processes.start(2, train, f"1:{what}", 5, 20, agent=True)
    said = processes.ended(0, 1)
    assert "error: no process of the run has got on for 5 s (backend.hang_after): rank 1 not answering, last in" in said
    assert "look first at rank 1" in said
    report = (processes.folder / "run" / "hang-000000000040.txt").read_text()
    assert "No stack" in report.partition("=== rank 1 (")[2]
    assert ("in misbehave" in processes.said(1)) == (what == "holds")


@pytest.mark.slow
@pytest.mark.parametrize("agent", [True, False], ids=["torchrun keeps the store", "the first keeps the store"])
def test_another_one_speaks_where_the_first_is_stopped(processes: Ranks, agent: bool) -> None:
    processes.start(3, train, "0:stopped", 5, 20, agent=agent)
    said = [processes.ended(rank, 1) for rank in (1, 2)]
    spoken = [text for text in said if "error:" in text]
    assert not agent or len(spoken) == 1, "the store tells which one speaks"
    for text in spoken:
        assert re.search(r"look first at ranks? 0\b", text)
        assert ("not answering" if agent else "since the store of the launch does not answer") in text
    assert failure(processes.folder) in "".join(said)


def test_one_alone_takes_the_place_of_the_first_and_another_one_only_if_that_ends_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = HashStore()
    store.set("word", json.dumps({"leader": 0, "number": 1, "signal": None, "asks": False, "over": False}))
    for rank in range(3):
        store.set(f"beat/{rank}", json.dumps(vars(own_beat(1, 0, None))))
    monkeypatch.setattr("hires_gan.training.beats._open_store", lambda world: store)
    monkeypatch.setattr(World, "gathered", lambda self, value: [value])
    one, two = (Exchange(World(torch.device("cpu"), rank, 3), StopRequest(), lambda: 0, 0.01) for rank in (1, 2))
    with closing(two):
        with closing(one):
            one.leads = True
            until(lambda: json.loads(store.get("word"))["leader"] == 1)
            two.leads, asked = True, time.monotonic()
            until(lambda: two.yielded)
            assert (two.leads, two.led >= asked, one.leads, one.yielded) == (False, True, True, False)
        two.leads = True
        until(lambda: json.loads(store.get("word"))["leader"] == 2)


def until(holds: Callable[[], bool]) -> None:
    """Wait until it is true."""
    end = time.monotonic() + LIMIT
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow
def test_a_run_that_was_stopped_for_a_while_goes_on(processes: Ranks) -> None:
    processes.start(1, train, "0:nothing", 6, 20)
    processes.ready()
    processes.signal(0, signal.SIGSTOP)
    time.sleep(15)  # more than twice as long as a hang is allowed to be
    processes.signal(0, signal.SIGCONT)
    time.sleep(1)
    assert processes.running == [0]
    processes.signal(0, signal.SIGTERM)
    processes.ended(0, 75)


def test_a_watch_ends_its_threads(tmp_path: Path) -> None:
    def running() -> set[str]:
        return {thread.name for thread in threading.enumerate() if thread.name.startswith("watch:")}

    with Watch(World(torch.device("cpu")), RunFolder(tmp_path), StopRequest(), lambda: 0, 600, 20):
        assert running() == {"watch: judge", "watch: beats"}
    until(lambda: not running())


# --- silence ----------------------------------------------------------------------------------------------------------


def quiet(rank: int, silent: float, heard: bool = True) -> Standing:
    beat = own_beat(0, 64, None) if heard else None
    return Standing(rank, beat, silent, silent < 5)


def test_a_silence_is_said_when_it_begins_and_when_it_is_over() -> None:
    silences = Silences()
    assert silences.look([quiet(0, 0.0), quiet(1, 4.9), quiet(2, 60.0, heard=False)]) == []
    (line,) = silences.look([quiet(0, 0.0), quiet(1, 5.2), quiet(2, 0.0)])
    assert line.startswith("rank 1 (") and "has not been heard of for 5 s" in line
    assert silences.look([quiet(0, 0.0), quiet(1, 9.7), quiet(2, 0.0)]) == []
    (line,) = silences.look([quiet(0, 0.0), quiet(1, 0.4), quiet(2, 0.0)])
    assert line == "rank 1 is heard of again, after 10 s: the run goes on"
    assert silences.look([quiet(0, 0.0), quiet(1, 0.1), quiet(2, 0.0)]) == []
