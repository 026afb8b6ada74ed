"""The decoding processes: what they survive, what they die of, and what is said then."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from input_definition import noise_files, write_shards
from odd_readers import Breaks, Marks, Sleeps
from running import is_running, wait_until_gone

from hires_gan.data import workers
from hires_gan.data.ring import Ring
from hires_gan.data.waiting import Stopped
from hires_gan.data.workers import WorkerPool
from hires_gan.errors import Failure

SLOT = 8 * 4 * 4 * 3


pytestmark = pytest.mark.usefixtures("fresh_server")


@contextmanager
def pool_of(reader, count, slots=4):
    ring = Ring(slots, SLOT)
    pool = WorkerPool(reader, ring, count, timeout=120.0)
    try:
        yield pool, ring
    finally:
        for process in pool._processes:
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
        pool.close()


def run(pool, turn, samples, slot=0):
    pool.submit(turn, slot, samples, 4)
    pool.wait(turn)


def wait_for(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def deciders(ring, slot, count):
    """The process that decoded each image of a slot."""
    marks = ring.images(slot, count, 4)[:, 0, 0].tolist()
    return [a | b << 8 | c << 16 for a, b, c in marks]


def test_every_worker_does_its_share_and_small_batches_go_round():
    with pool_of(Marks(), 3) as (pool, ring):
        pids = [process.pid for process in pool._processes]
        run(pool, 0, range(7))
        shares = deciders(ring, 0, 7)
        assert [shares.count(pid) for pid in pids] == [3, 2, 2]
        single = []
        for turn in range(1, 7):
            run(pool, turn, range(turn, turn + 1))
            single += deciders(ring, 0, 1)
        assert all(single.count(pid) == 2 for pid in pids)


def test_a_killed_worker_is_named_with_its_signal_at_once():
    with pool_of(Sleeps(), 2) as (pool, _):
        run(pool, 0, range(4))
        victim = pool._processes[1]
        pool.submit(1, 1, range(100, 104), 4)
        os.kill(victim.pid, signal.SIGKILL)
        start = time.monotonic()
        with pytest.raises(Failure, match=rf"data worker 1 \(process {victim.pid}\) was killed by SIGKILL; if the m"):
            pool.wait(1)
        assert time.monotonic() - start < 30
        with pytest.raises(Failure, match=r"data worker 1 .* was killed by SIGKILL"):
            pool.submit(2, 2, range(4), 4)


def test_a_worker_that_hangs_is_named_with_what_it_reads():
    with pool_of(Sleeps(), 2) as (pool, _):
        run(pool, 0, range(4))
        pool.submit(1, 1, range(100, 101), 4)
        wait_for(lambda: pool._board.cell(0) == 77)
        pool._timeout = 1.0
        named = r"data worker 0 \(process \d+\) has not answered for 1 s, while it reads row 77; look at the disk"
        with pytest.raises(Failure, match=named):
            pool.wait(1)


def test_a_wait_for_a_worker_that_hangs_is_given_up_when_somebody_wants_it():
    asked = iter([False, False, True])
    with pool_of(Sleeps(), 1) as (pool, _):
        pool._stopped = lambda: next(asked)
        pool.submit(1, 1, range(100, 101), 4)
        with pytest.raises(Stopped):
            pool.wait(1)


def test_a_worker_that_is_stopped_between_two_samples_reads_nothing():
    with pool_of(Marks(), 1) as (pool, _):
        run(pool, 0, range(4))
        pool._timeout = 1.0
        os.kill(pool.pids[0], signal.SIGSTOP)
        pool.submit(1, 1, range(4), 4)
        with pytest.raises(Failure, match=r"has not answered for 1 s; look at the disk .*, or raise data\.timeout$"):
            pool.wait(1)


def test_reports_of_all_workers_are_told_once():
    with pool_of(Marks(), 3) as (pool, _):
        for turn in range(2):
            pool.submit(turn, turn, range(7 * turn, 7 * turn + 7), 4)
        assert pool.wait(1).shown == {(0, sample): -sample for sample in range(7, 14)}  # of this batch alone
        assert pool.wait(0).shown == {(0, sample): -sample for sample in range(7)}
        assert pool.wait(0).shown == {}


def test_a_hanging_worker_is_ended_in_the_end(monkeypatch):
    monkeypatch.setattr(workers, "_GRACE", 0.5)
    with pool_of(Sleeps(), 1) as (pool, _):
        pool.submit(0, 0, range(100, 101), 4)
        pid = pool._processes[0].pid
        start = time.monotonic()
        pool.close()
        assert time.monotonic() - start < 30
        assert wait_until_gone([pid]) == []


def test_failures_keep_their_sentence_and_the_worker_goes_on():
    with pool_of(Breaks(), 1) as (pool, _):
        with pytest.raises(Failure, match=r"^the sentence of the worker$"):
            run(pool, 0, range(1, 5))
        run(pool, 1, range(3, 5))


def test_an_unexpected_error_ends_the_worker_by_name():
    match = r"data worker 0 \(process \d+\) ended with exit code 1; its own message"
    with pool_of(Breaks(), 1) as (pool, _), pytest.raises(Failure, match=match):
        run(pool, 0, range(2, 5))


def test_closing_ends_the_workers_and_keeps_no_descriptor(monkeypatch):
    monkeypatch.setattr(workers, "_GRACE", 60.0)  # they end by themselves
    with pool_of(Marks(), 1) as (pool, _):  # the server's own descriptors stay
        run(pool, 0, range(2))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pool_of(Marks(), 2) as (pool, _):
            run(pool, 0, range(2))
            pids = [process.pid for process in pool._processes]
            pool.close()
            assert [process.exitcode for process in pool._processes] == [0, 0]
            assert wait_until_gone(pids, 0) == []
        del pool, _
    assert len(os.listdir("/proc/self/fd")) <= before


SCRIPT = """
import os, signal, sys, time
from multiprocessing import forkserver
from pathlib import Path
from hires_gan.data.loader import Loader, Request
from hires_gan.data.settings import DataSettings
from hires_gan.data.shards import ShardSet

def main(folder, mode):
    if mode == "alone":  # a server that something else has started takes no notice of the mask
        forkserver.ensure_running()
    caught = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: caught.append(number))
    settings = DataSettings(shards=folder, workers=2, prefetch=2)
    loader = Loader(ShardSet(Path(folder)), settings, 0, 4 * 16 * 16 * 3)
    for k, batch in enumerate(loader.batches(Request(range(4 * n, 4 * n + 4), 16) for n in range(60))):
        if k == 0:
            print(*loader.decoder.pids, forkserver._forkserver._forkserver_pid)
            sys.stdout.flush()
        if k == 10:
            if mode == "alone":
                os.killpg(0, signal.SIGINT)
                os.killpg(0, signal.SIGTERM)
            deadline = time.monotonic() + 60
            while len(caught) < 2 and time.monotonic() < deadline:
                time.sleep(0.02)
            time.sleep(0.3)
    print(k + 1, sorted(caught), flush=True)
    if mode == "killed":
        for batch in loader.batches(Request(range(4 * n, 4 * n + 4), 16) for n in range(10**9)):
            pass
    # "alone" leaves without closing the loader

if __name__ == "__main__":
    main(*sys.argv[1:])
"""


@contextmanager
def script(tmp_path, mode):
    """The script above in a process group of its own, which is ended whatever happens."""
    (tmp_path / "script.py").write_text(SCRIPT)
    write_shards(tmp_path / "shards", noise_files(11, 16), 16)
    process = subprocess.Popen(
        [sys.executable, tmp_path / "script.py", tmp_path / "shards", mode],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(workers.__file__).parents[2],
        env=os.environ | {"PYTHONPATH": str(Path(workers.__file__).parents[2])},
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_stop_signals_to_the_group_leave_the_workers_and_a_killed_parent_leaves_none(tmp_path):
    with script(tmp_path, "killed") as process:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 3
        os.killpg(process.pid, signal.SIGTERM)
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout.readline() == f"60 [{int(signal.SIGINT)}, {int(signal.SIGTERM)}]\n"
        assert all(is_running(pid) for pid in pids)
        process.kill()
        process.wait()
        assert wait_until_gone(pids) == []


def test_a_loader_that_nobody_closes_ends_with_its_process_even_under_a_foreign_server(tmp_path):
    with script(tmp_path, "alone") as process:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert process.stdout.readline() == f"60 [{int(signal.SIGINT)}, {int(signal.SIGTERM)}]\n"
        assert process.wait(120) == 0
        assert wait_until_gone(pids) == []
