from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from hires_gan.data import conversion
from hires_gan.data.archives import Reference
from hires_gan.data.conversion import convert_all
from hires_gan.data.pictures import PictureOptions
from hires_gan.data.pool import in_order
from hires_gan.errors import Failure


def double(item: int) -> int:
    time.sleep(0.01 * (item % 3))
    return 2 * item


def die_at_three(item: int) -> int:
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def fail_at_three(item: int) -> int:
    if item == 3:
        raise ValueError("three")
    return item


class Noting:
    """Picklable, and sees in which process it was begun."""

    def __call__(self) -> None:
        os.environ["BEGUN_IN"] = str(os.getpid())


def begun_here(_: int) -> bool:
    return os.environ.get("BEGUN_IN") == str(os.getpid())


@pytest.mark.parametrize("processes", [1, 2])
def test_answers_come_in_order_and_items_are_drawn_a_bounded_distance_ahead(processes):
    drawn = []

    def items():
        for item in range(40):
            drawn.append(item)
            yield item

    results = in_order(double, items(), processes, "--workers")
    assert next(results) == 0
    assert len(drawn) <= 1 + 4 * processes
    assert list(results) == [2 * item for item in range(1, 40)]
    assert list(in_order(double, [], processes, "--workers")) == []


def test_a_killed_worker_is_one_sentence_and_no_hang():
    with pytest.raises(
        Failure, match=r"^a worker process was killed.*: run the same command again, with fewer --w than 2"
    ):
        list(in_order(die_at_three, range(50), 2, "--w"))


@pytest.mark.parametrize("processes", [1, 2])
def test_errors_are_the_caller_s(processes):
    results = in_order(fail_at_three, range(50), processes, "--workers")
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)


def test_every_process_is_begun():
    assert all(in_order(begun_here, range(20), 2, "--workers", begin=Noting()))


def test_closing_ends_the_processes():
    here = psutil.Process()
    before = set(here.children(recursive=True))
    results = in_order(double, iter(range(10**9)), 2, "--workers")
    next(results)
    workers = set(here.children(recursive=True)) - before - set(here.children())  # its children are servers
    assert len(workers) >= 2
    results.close()
    _, alive = psutil.wait_procs(list(workers), timeout=60)
    assert alive == []


def test_no_worker_outlives_a_killed_parent(tmp_path):
    code = """
import sys, time
from hires_gan.data.pool import in_order
if __name__ == "__main__":
    for _ in in_order(time.sleep, iter([0.01] * 10**6), 2, "--workers"):
        print(flush=True)
"""
    (tmp_path / "parent.py").write_text(code)
    parent = subprocess.Popen([sys.executable, tmp_path / "parent.py"], stdout=subprocess.PIPE)
    parent.stdout.readline()
    workers = psutil.Process(parent.pid).children(recursive=True)
    assert len(workers) >= 2
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert alive == []


def test_too_little_memory_is_one_sentence(monkeypatch):
    def no_memory(_: Reference) -> bytes:
        raise MemoryError

    monkeypatch.setattr(conversion, "read_bytes", no_memory)
    file = Reference(str(Path(__file__)), "x.png", "x.png", 1)
    with pytest.raises(Failure, match="not enough memory to convert an image: .* fewer --processes or a smaller --max"):
        list(convert_all(PictureOptions(16), ("image",), [(file,)], 1))
