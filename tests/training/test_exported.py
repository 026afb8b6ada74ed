"""Runs that are watched by Prometheus: a port from before the first step to the end, whichever end that is."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from free_ports import free_port
from scraping import Scraped, is_free, scrape
from whole_runs import changed, run

from hires_gan.errors import Failure
from hires_gan.training import run as run_module
from hires_gan.training.trainer import Trainer

SHORT = {"total_kimg": 0.112}
"""Seven steps, with a checkpoint behind the last."""


@pytest.fixture
def port():
    return free_port()


@pytest.fixture
def watched(settings, port) -> dict[str, Any]:
    return changed(settings, tracking={"metrics_port": port, "metrics_address": "127.0.0.1"})


@pytest.fixture
def at_the_end(monkeypatch) -> list[Any]:
    """Calls these behind the last step and the last checkpoint, before the run ends."""
    calls: list[Any] = []
    end = run_module._record_end
    monkeypatch.setattr(run_module, "_record_end", lambda *given: ([call() for call in calls], end(*given)))
    return calls


def logged(run_dir: Path, prefix: str) -> dict[str, list[float]]:
    """What MLflow has under names that begin so, by the rest of the name, in the order of the run."""
    found: dict[str, list[float]] = {}
    with sqlite3.connect(run_dir / "mlflow.db") as store:
        for key, value in store.execute("select key, value from metrics order by step"):
            if key.startswith(prefix):
                found.setdefault(key.removeprefix(prefix), []).append(value)
    return found


def watch(port: int, ended: threading.Event, seen: list[Scraped]) -> None:
    """Ask again and again; before it listens, and behind the end, nobody answers."""
    while not ended.wait(0.02):
        with contextlib.suppress(OSError):
            seen.append(scrape(port, "small"))


def test_a_run_is_watched_and_says_what_mlflow_has(watched, port, tmp_path, at_the_end):
    seen: list[Scraped] = []
    last: list[Scraped] = []
    at_the_end.append(lambda: last.append(scrape(port, "small")))
    ended = threading.Event()
    watching = threading.Thread(target=watch, args=(port, ended, seen))
    watching.start()
    try:
        assert run(watched)
    finally:
        ended.set()
        watching.join(60)
    runs = tmp_path / "runs"
    (found,) = last
    for metric, prefix in (("loss", "loss/"), ("statistic", "statistics/"), ("evaluation", "evaluation/")):
        assert found.all(metric, "name") == {name: values[-1] for name, values in logged(runs, prefix).items()}
    assert {"generator", "discriminator_real", "gp"} <= found.all("loss", "name").keys()
    assert "swd" in found.all("evaluation", "name")
    assert found.all("learning_rate", "player").keys() == {"generator", "discriminator"}
    for metric, key in (
        ("images_per_second", "speed/images_per_second"),
        ("data_wait_ratio", "speed/data_wait"),
        ("resolution", "schedule/resolution"),
        ("batch_size", "schedule/batch"),
        ("nonfinite_gradient_entries", "gradients/nonfinite"),
        ("skipped_samples", "data/skipped"),
    ):
        assert found.get(metric) == logged(runs, key)[""][-1]
    assert (found.get("kimg"), found.get("total_kimg"), found.get("checkpoint_kimg")) == (0.48, 0.48, 0.48)
    run_id = json.loads((runs / "small" / "tracking" / "run.json").read_text())["run_id"]
    assert found.get("run_info", recipe="progressive", version=run_module.__version__, mlflow_run_id=run_id) == 1
    (memory,) = found.all("resident_memory_bytes", "rank").values()
    assert memory / 2**30 == logged(runs, "memory/gib")[""][-1]
    assert found.get("slowest_rank") is None, "of one process there is none"
    history = logged(runs, "loss/")
    kimg = [one.get("kimg") for one in (*seen, found) if one.get("kimg") is not None]
    assert kimg == sorted(kimg)
    assert all(value in history[name] for one in (*seen, found) for name, value in one.all("loss", "name").items())
    assert is_free(port)


def test_progress_is_fresh_between_two_logs(watched, port, monkeypatch):
    """The grid is drawn at 208 images, metrics are logged at 192 and 224."""
    seen: dict[int, Scraped] = {}
    draw = Trainer._sample

    def sample(trainer: Trainer) -> bool:
        seen[trainer.progress.nimg] = scrape(port, "small")
        return draw(trainer)

    monkeypatch.setattr(Trainer, "_sample", sample)
    assert run(changed(watched, run={"total_kimg": 0.224}))
    assert list(seen) == [0, 208, 224]
    assert {nimg: one.get("kimg") for nimg, one in seen.items()} == {0: 0, 208: 0.208, 224: 0.224}
    assert seen[0].all("loss", "name") == {}
    assert seen[0].get("checkpoint_kimg") is None


def test_the_age_of_a_checkpoint_is_that_of_its_state(watched, port, monkeypatch, at_the_end):
    """Before the first one, it counts from the start; what a run went on from is as old as the start, too."""
    started = time.perf_counter()
    taken: list[tuple[float, float]] = []
    ages: dict[str, tuple[float, float, float]] = {}

    def look(when: str) -> None:
        before = time.perf_counter()
        age = scrape(port, "small").get("checkpoint_age_seconds")
        assert age is not None
        ages[when] = before, age, time.perf_counter()

    save = Trainer._save

    def saved(trainer: Trainer) -> None:
        look("before")
        before = time.perf_counter()
        save(trainer)
        taken.append((before, time.perf_counter()))

    monkeypatch.setattr(Trainer, "_save", saved)
    at_the_end.append(lambda: look("end"))
    short = changed(watched, run=SHORT, evaluation={"every_kimg": None})
    assert run(short)
    assert len(taken) == 1
    before, age, after = ages["before"]
    assert 0 < age < after - started
    before, age, after = ages["end"]
    earliest, latest = taken[0]
    assert before - latest <= age <= after - earliest

    again = time.perf_counter()
    assert run(changed(short, run={"total_kimg": 0.128}))
    before, age, after = ages["before"]
    assert 0 < age < after - again


def test_a_resumed_run_says_where_it_went_on_and_may_change_its_port(watched, port, at_the_end):
    seen: list[Scraped] = []
    assert run(changed(watched, run=SHORT))
    other = free_port()
    resumed = changed(watched, run={"total_kimg": 0.112}, tracking={"metrics_port": other})
    at_the_end.append(lambda: seen.append(scrape(other, "small")))
    assert run(resumed)
    assert (seen[0].get("kimg"), seen[0].get("checkpoint_kimg")) == (0.112, 0.112)


# --- ends -------------------------------------------------------------------------------------------------------------


def test_the_port_is_free_behind_a_failure(watched, port, monkeypatch):
    served: list[bool] = []

    def fail(*_: object) -> None:
        served.append(scrape(port, "small").get("kimg") == 0)
        raise Failure("the cable is out")

    monkeypatch.setattr(Trainer, "_step", fail)
    with pytest.raises(Failure, match="the cable is out"):
        run(watched)
    assert served == [True]
    assert is_free(port)


@pytest.mark.parametrize("opened", ["start_tracking", "describe_run"])
def test_the_port_is_free_behind_a_start_that_failed_later(watched, port, monkeypatch, opened):
    served: list[bool] = []

    def fail(*_: object) -> None:
        served.append(not is_free(port))
        raise Failure("not today")

    monkeypatch.setattr(run_module, opened, fail)
    with pytest.raises(Failure, match="not today"):
        run(watched)
    assert served == [True]
    assert is_free(port)


def test_a_port_in_use_ends_it_before_the_first_step_and_leaves_nothing(watched, port, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "_step", lambda *_: pytest.fail("it trains"))
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        with pytest.raises(Failure, match=rf"^tracking\.metrics_port is {port}, but another program.*take another"):
            run(watched)
    assert not (tmp_path / "runs" / "small").exists()
    assert not (tmp_path / "runs" / "mlflow.db").exists()


def test_without_the_key_nothing_listens(settings, at_the_end):
    def listening() -> set[Any]:
        return {at.laddr for at in psutil.Process().net_connections("inet") if at.status == psutil.CONN_LISTEN}

    before, seen = listening(), []
    at_the_end.append(lambda: seen.append(listening()))
    assert run(changed(settings, run=SHORT))
    (now,) = seen
    assert now <= before, "what an earlier test has left may be collected meanwhile"


# --- processes --------------------------------------------------------------------------------------------------------


def command(config: Path, *overrides: str) -> list[str]:
    return ["-m", "hires_gan", "train", str(config), *overrides]


@pytest.mark.slow
def test_the_command_fails_on_a_port_in_use(watched, write_config, port):
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        done = subprocess.run(
            [sys.executable, *command(write_config(watched))], capture_output=True, text=True, timeout=240
        )
    assert done.returncode == 1, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert f"tracking.metrics_port is {port}" in line


@pytest.mark.slow
def test_of_two_processes_the_first_one_serves_what_both_use(watched, write_config, port, tmp_path):
    config = write_config(changed(watched, run={"total_kimg": 400}, evaluation={"every_kimg": None}))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    log = tmp_path / "log"
    with log.open("w") as said:
        launcher = subprocess.Popen([*torchrun, *command(config)], env=environment, stdout=said, stderr=said)
    try:
        found = until_ranks_are_served(port, launcher, log)
        workers = psutil.Process(launcher.pid).children(recursive=True)
        serving = [worker.pid for worker in workers if listens(worker, port)]
        status = json.loads((tmp_path / "runs" / "small" / "status.json").read_text())
    finally:
        code = end(launcher)
    assert code == 1, log.read_text()
    assert len(serving) == 1
    assert status["state"] == "running"
    memory = found.all("resident_memory_bytes", "rank")
    assert set(memory) == {"0", "1"}
    assert min(memory.values()) > 2**20
    assert found.get("slowest_rank") in (0, 1)
    slowest, median = (found.get(f"{which}_rank_step_seconds") for which in ("slowest", "median"))
    assert slowest is not None and median is not None
    assert 0 < median <= slowest
    assert is_free(port)


def until_ranks_are_served(port: int, launcher: subprocess.Popen[bytes], log: Path) -> Scraped:
    deadline = time.monotonic() + 240
    while True:
        assert launcher.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        try:
            found = scrape(port, "small")
        except OSError:
            found = None
        if found is not None and found.get("slowest_rank") is not None:
            return found
        time.sleep(0.2)


def end(launcher: subprocess.Popen[bytes]) -> int:
    """Stop a launch, whose workers write a checkpoint; what is left of it is killed."""
    running = launcher.poll() is None
    workers = psutil.Process(launcher.pid).children(recursive=True) if running else []
    launcher.terminate()
    try:
        return launcher.wait(240)
    finally:
        for process in (*workers, launcher):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def listens(process: psutil.Process, port: int) -> bool:
    try:
        return any(at.laddr.port == port and at.status == psutil.CONN_LISTEN for at in process.net_connections("inet"))
    except psutil.NoSuchProcess:
        return False
