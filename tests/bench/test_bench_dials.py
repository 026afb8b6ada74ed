"""`hires-gan bench dials`: how far curves are apart, by hand; what is trained; and on a CPU, where both are one."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from small_plans import SMALL

from hires_gan import cli
from hires_gan.bench import dials
from hires_gan.bench.children import start
from hires_gan.bench.dials import Request, Trained, bench_dials, table
from hires_gan.bench.dials_curves import Curve, apart, compared, limit
from hires_gan.bench.identity import identity
from hires_gan.errors import Failure, UsageError
from hires_gan.tracking import machine

CONFIGS = Path(__file__).resolve().parent.parent.parent / "configs"
TINY = (
    *SMALL,
    "recipe.augment=null",
    "samples.every_kimg=null",
    "tracking.every_kimg=0.016",
)


@pytest.fixture(autouse=True)
def a_commit(monkeypatch):
    """Where the tests run in a copy without its checkout."""
    monkeypatch.setenv("HIRES_GAN_COMMIT", "3f2a")


def curve(*values: float, steps: list[int] | None = None) -> Curve:
    places = list(range(1000, 1000 * (len(values) + 1), 1000)) if steps is None else steps
    return np.array(places, np.int64), np.array(values, np.float64)


def by_hand(fast: list[Curve], reference: list[Curve]) -> dict[tuple[str, int], Curve]:
    runs = {("fast", seed): one for seed, one in enumerate(fast)}
    return runs | {("reference", seed): one for seed, one in enumerate(reference)}


def test_distances_are_those_by_hand():
    """Means 2 and 5, then 3 and 3: root mean square of 3 and 0. Seeds are 2 and 4 apart, then 0 and 2."""
    runs = by_hand([curve(1, 3), curve(3, 3)], [curve(3, 2), curve(7, 4)])
    found = apart("evaluation/fid", runs)
    assert found is not None
    assert found.points == 2
    assert found.dials == pytest.approx(math.sqrt((9 + 0) / 2))
    assert found.seeds == pytest.approx(math.sqrt((4 + 16 + 0 + 4) / 4))
    assert found.ratio == pytest.approx(math.sqrt(4.5 / 6))
    assert found.equal is False and found.differs(0.86) is True and found.differs(0.87) is False


@pytest.mark.parametrize(
    ("seeds", "metrics", "t"),
    [(2, 1, 4.302653), (2, 5, 9.924843), (3, 1, 2.776445), (3, 5, 4.604095), (6, 1, 2.228139)],
)
def test_the_limit_is_students(seeds, metrics, t):
    """Two-sided quantiles as tables have them, for 0.05 and 0.01, with 2, 4 and 10 degrees of freedom."""
    assert limit(seeds, metrics) == pytest.approx(t / math.sqrt(seeds), rel=1e-6)


def test_one_seed_does_not_tell_unless_the_curves_are_equal():
    assert limit(1, 4) is None
    one = apart("evaluation/fid", by_hand([curve(1.0)], [curve(2.0)]))
    assert one is not None and one.seeds is None and one.ratio is None and one.differs(limit(1, 1)) is None
    same = apart("evaluation/fid", by_hand([curve(1.0)], [curve(1.0)]))
    assert same is not None and same.equal is True and same.differs(limit(1, 1)) is False


def test_seeds_that_are_not_apart_leave_no_room_for_dials_that_are():
    found = apart("evaluation/fid", by_hand([curve(1.0), curve(1.0)], [curve(1.5), curve(1.5)]))
    assert found is not None and found.ratio is None and found.differs(limit(2, 1)) is True


def drawn(
    random: np.random.Generator, seeds: int, correlation: float, shift: float = 0.0
) -> dict[tuple[str, int], Curve]:
    """Runs of the same distribution: ten points each, the next one with that correlation to the one before."""
    noise = random.normal(size=(2, seeds, 10))
    values = noise.copy()
    for place in range(1, 10):
        values[..., place] = correlation * values[..., place - 1] + math.sqrt(1 - correlation**2) * noise[..., place]
    values[1] += shift
    return by_hand([curve(*row) for row in values[0]], [curve(*row) for row in values[1]])


def share_that_differs(seeds: int, correlation: float, metrics: int, shift: float = 0.0) -> float:
    """Of 400 comparisons, those in which some metric differs."""
    random, most = np.random.default_rng(seeds), limit(seeds, metrics)
    found = 0
    for _ in range(400):
        drawings = [apart("evaluation/fid", drawn(random, seeds, correlation, shift)) for _ in range(metrics)]
        found += any(one is not None and one.differs(most) for one in drawings)
    return found / 400


@pytest.mark.parametrize("correlation", [0.0, 0.9, 0.99, 1.0])
@pytest.mark.parametrize(("seeds", "metrics"), [(2, 1), (2, 4), (4, 4)])
def test_equal_dials_are_seldom_told_to_differ(seeds, metrics, correlation):
    """Five in a hundred at most, and where curves are constant just so many: the limit is no larger than needed."""
    share = share_that_differs(seeds, correlation, metrics)
    assert share <= 0.08, "0.05 within three standard deviations of 400 comparisons"
    assert share >= 0.02 or correlation < 1


@pytest.mark.parametrize(("seeds", "shift"), [(2, 12.0), (4, 5.0)])
def test_a_difference_is_found(seeds, shift):
    """Of that many standard deviations of a run: the more seeds, the smaller it may be."""
    assert share_that_differs(seeds, 0.9, 4, shift) > 0.95


def test_only_places_that_all_have_count():
    late = curve(1, 2, 3, steps=[2000, 3000, 4000])
    gone = curve(1, float("nan"), 3, 9)
    found = apart("evaluation/fid", by_hand([curve(1, 2, 3, 4), curve(1, 2, 3)], [late, gone]))
    assert found is not None and found.points == 1, "3000: at 2000 one is not finite, at 4000 one has ended"
    assert apart("evaluation/fid", by_hand([curve(1)], [curve(1, steps=[5])])) is None


def test_losses_are_compared_by_stretches():
    """Noise from step to step averages out; what is left of it is not what two dials are judged by."""
    draw = np.random.default_rng(0)
    runs = by_hand(*([curve(*draw.normal(size=800)) for _ in range(2)] for _ in range(2)))
    losses, judged = apart("loss/generator", runs), apart("evaluation/fid", runs)
    assert losses is not None and judged is not None
    assert (losses.points, judged.points) == (8, 800)
    assert losses.dials < 0.3 < judged.dials


def test_speed_is_not_compared():
    names = ["evaluation/swd", "loss/r1", "speed/images_per_second", "statistics/score_real", "kimg"]
    assert compared(names) == ["evaluation/swd", "loss/r1"]


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ({"seeds": (1, 1)}, "--seeds is 1,1; different whole numbers are allowed"),
        ({"seeds": ()}, "--seeds is ; different whole numbers are allowed"),
        ({"seconds": 0.0}, "--seconds is 0; a number above 0 is allowed"),
        ({"runs": -1}, "--runs is -1; 0 or more are allowed"),
    ],
)
def test_what_cannot_be_is_refused(request_, sentence, tmp_path):
    with pytest.raises(UsageError, match=sentence):
        bench_dials(CONFIGS / "demo.yaml", (), Request(tmp_path, **request_))


def test_other_settings_than_before_are_refused(tmp_path):
    config = CONFIGS / "demo.yaml"
    bench_dials(config, (), Request(tmp_path, runs=0))
    bench_dials(config, (), Request(tmp_path, runs=0))
    with pytest.raises(UsageError, match=r"was made with demo\.yaml for 480 seconds"):
        bench_dials(config, ("batch.size=8",), Request(tmp_path, runs=0))


@pytest.mark.parametrize(("name", "other"), [("gpu.name", "another GPU"), ("git.commit", "0" * 40)])
def test_runs_of_another_machine_or_commit_are_not_gone_on_with(name, other, tmp_path, monkeypatch):
    """Refused before anything is trained; what is trained may be compared anywhere."""
    config = CONFIGS / "demo.yaml"
    bench_dials(config, (), Request(tmp_path, runs=0))
    (tmp_path / "fast-0.json").write_text(json.dumps(identity("dials") | {name: other}))
    monkeypatch.setattr(dials, "_train", None)
    with pytest.raises(UsageError, match=rf"fast-0\.json says that fast-0 was trained with {name} {other}, and here"):
        bench_dials(config, (), Request(tmp_path, runs=1))
    told = bench_dials(config, (), Request(tmp_path, runs=0))
    assert [run["trained_on"].get(name) for run in told["runs"]] == [other, None, None, None]


def test_runs_of_a_commit_that_is_not_known_are_not_gone_on_with(tmp_path, monkeypatch, capsys):
    """Two copies without a checkout may differ; that is said before anything is trained."""
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)  # no git there
    monkeypatch.delenv("HIRES_GAN_COMMIT", raising=False)
    config = CONFIGS / "demo.yaml"
    monkeypatch.setattr(dials, "_train", lambda run, *others: run.trained_on.write_text(json.dumps(identity("dials"))))
    bench_dials(config, (), Request(tmp_path, runs=1))
    assert "a later call cannot go on with this one: set HIRES_GAN_COMMIT to what" in " ".join(
        capsys.readouterr().err.split()
    )
    monkeypatch.setattr(dials, "_train", None)
    with pytest.raises(
        UsageError, match=r"with a commit that is not known, as it is not known here: .*HIRES_GAN_COMMIT"
    ):
        bench_dials(config, (), Request(tmp_path, runs=1))
    monkeypatch.setenv("HIRES_GAN_COMMIT", "3f2a")
    with pytest.raises(UsageError, match="with git.commit unknown, and here it is 3f2a"):
        bench_dials(config, (), Request(tmp_path, runs=1))
    assert bench_dials(config, (), Request(tmp_path, runs=0))["complete"] is False, "what is there may be looked at"


def test_what_was_compared_stays_until_more_can_be(tmp_path, monkeypatch):
    """Neither a failing run nor a call that trains a part of more seeds takes it away."""
    config, out = CONFIGS / "demo.yaml", tmp_path / "dials.json"
    first = bench_dials(config, (), Request(tmp_path, runs=0))
    compared = first | {"complete": True, "metrics": {"evaluation/swd": {}}}
    out.write_text(json.dumps(compared))

    def failing(*arguments: object) -> None:
        raise Failure("the GPU is gone")

    monkeypatch.setattr(dials, "_train", failing)
    with pytest.raises(Failure, match="the GPU is gone"):
        bench_dials(config, (), Request(tmp_path))
    assert json.loads(out.read_text()) == compared
    monkeypatch.setattr(dials, "_train", lambda *arguments: None)
    more = bench_dials(config, (), Request(tmp_path, seeds=(0, 1, 2), runs=1))
    assert more["complete"] is False and len(more["runs"]) == 6
    assert json.loads(out.read_text()) == compared


def test_a_run_that_fails_is_told_with_its_reason(tmp_path):
    config = CONFIGS / "stylegan2_demo.yaml"
    with pytest.raises(Failure, match=r"fast-0 ended with exit code 2 \(.*nowhere.*\): .*fast-0\.log says more"):
        bench_dials(config, (*TINY, f"data.shards={tmp_path}/nowhere"), Request(tmp_path / "out"))
    record = json.loads((tmp_path / "out" / "dials.json").read_text())
    assert record["complete"] is False


def test_the_time_ends_a_run_by_its_own_process_alone(tmp_path):
    process, said = start(["bench", "tracking", "--delay", 600], tmp_path / "log", os.environ), []
    assert dials._ended(process, 0.2, lambda: said.append(process.poll())) == -signal.SIGTERM
    assert said == [None], "that the time is up is said before the signal"


STOPPED_PARENT = """
import signal, subprocess, sys
from pathlib import Path
from hires_gan.bench import dials

def stop(number, frame):
    raise SystemExit(128 + number)

class Waited(subprocess.Popen):
    def wait(self, timeout=None):
        if timeout == 60.0:
            print("waits", flush=True)
        return super().wait(timeout)

signal.signal(signal.SIGTERM, stop)
process = Waited([sys.executable, "-c", sys.argv[2], sys.argv[1]], stdout=subprocess.DEVNULL)
while not (Path(sys.argv[1]) / "begun").exists():
    pass
dials._ended(process, 60.0, lambda: print("its time is up", flush=True))
"""
SLOW_TO_STOP = """
import signal, sys, time
from pathlib import Path
folder, asked = Path(sys.argv[1]), []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
(folder / "begun").touch()
end = time.monotonic() + 60
while not asked and time.monotonic() < end:
    time.sleep(0.01)
time.sleep(1.5)
(folder / "checkpoint").touch()
sys.exit(75)
"""


def test_a_run_has_time_for_its_checkpoint_where_the_parent_is_stopped(tmp_path):
    """Else all that it has trained since the last one is lost, and its time does not count."""
    command = [sys.executable, "-c", STOPPED_PARENT, str(tmp_path), SLOW_TO_STOP]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None and parent.stdout.readline() == "waits\n"
        parent.terminate()
        assert parent.wait(60) == 128 + signal.SIGTERM
        assert parent.stdout.read() == ""
    assert (tmp_path / "checkpoint").exists()


class Training:
    """In place of a run's process: it trains until somebody stops it, and the clock is no matter.

    Args:
        run: Which one it is.
        after: Seconds after which another one than the parent stops it, or kills it; None: nobody does.
        state: What its status says from then on: of a killed run, still `running`.
        parent: Whether the signal ends the parent, too.
    """

    def __init__(self, run: Trained, after: float | None = None, state: str = "preempted", parent: bool = True) -> None:
        self.run, self.after, self.state, self.parent = run, after, state, parent
        self.given: float | None = None
        self.said: float | None = -1.0

    def wait(self, seconds: float | None) -> int:
        if self.given is None:
            self.given = seconds
            if self.after is None:
                raise subprocess.TimeoutExpired("train", seconds or 0)
            self.say(self.state, self.after)
            if self.parent:
                raise SystemExit(-signal.SIGTERM)
        return 75

    def send_signal(self, number: int) -> None:
        assert number == signal.SIGTERM
        self.say("preempted", self.given or 0)

    def poll(self) -> int | None:
        return 75 if self.run.status.get("time") == self.said else None

    def say(self, state: str, after: float) -> None:
        self.run.folder.mkdir(parents=True, exist_ok=True)
        self.said = time.time() + after
        status = {"state": state, "nimg": 1000, "time": self.said}
        (self.run.folder / "status.json").write_text(json.dumps(status))


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """Call `bench dials` for one run with each process in turn, and say which runs went on, for how many seconds."""
    now = 1e9
    monkeypatch.setattr(time, "time", lambda: now)

    def go(*processes: Training, seconds: float | None = 480.0) -> list[tuple[str, float | None]]:
        nonlocal now
        given = []
        for process in processes:
            now += 10_000  # the next call is one of another day
            names = []
            monkeypatch.setattr(dials, "start", lambda command, *rest, one=process, to=names: to.extend(command) or one)
            try:
                bench_dials(CONFIGS / "demo.yaml", (), Request(tmp_path, seconds, runs=1))
            except SystemExit:
                assert process.parent
            (name,) = [str(word).removeprefix("run.name=") for word in names if str(word).startswith("run.name=")]
            given.append((name, process.given))
        return given

    return go


@pytest.fixture
def first(tmp_path):
    return Trained("fast", 0, tmp_path / "runs" / "fast-0")


@pytest.fixture
def second(tmp_path):
    return Trained("reference", 0, tmp_path / "runs" / "reference-0")


def test_a_run_whose_time_was_up_is_done(trained, first, second):
    assert trained(Training(first), Training(second)) == [("fast-0", 480), ("reference-0", 480)]
    assert first.done and second.done


def test_a_run_that_somebody_else_stopped_goes_on_for_what_is_left(trained, first, second):
    """As `timeout` stops a whole group of processes: it says that it was stopped, as one whose time is up does."""
    cut = trained(Training(first, 30))
    assert cut == [("fast-0", 480)] and first.status["state"] == "preempted" and not first.done
    assert trained(Training(first, 100), Training(first), Training(second)) == [
        ("fast-0", 450),
        ("fast-0", 350),
        ("reference-0", 480),
    ]


@pytest.mark.parametrize("state", ["running", "failed"])
def test_what_a_kill_or_an_error_may_have_lost_is_not_counted(trained, first, state):
    given = trained(Training(first, 100), Training(first, 200, state), Training(first))
    assert given == [("fast-0", 480), ("fast-0", 380), ("fast-0", 380)] and first.done


def test_a_run_that_goes_on_has_time_to_begin(trained, first):
    assert trained(Training(first, 479), Training(first)) == [("fast-0", 480), ("fast-0", 60)]


def test_a_run_of_fewer_seconds_than_it_takes_to_begin(trained, first):
    assert trained(Training(first, 9), Training(first), seconds=10.0) == [("fast-0", 10), ("fast-0", 10)]


def test_a_run_to_a_given_kimg_is_done_when_it_is_there_alone(trained, first, second):
    ended = Training(first, 300, "finished")
    given = trained(Training(first, 30), ended, Training(second, 1), seconds=None)
    assert given == [("fast-0", None), ("fast-0", None), ("reference-0", None)] and not second.done


def test_a_run_that_is_stopped_while_its_parent_goes_on_is_not_taken_for_a_failure_or_an_end(trained, first):
    with pytest.raises(Failure, match="fast-0 was stopped before its end: the same command goes on with it"):
        trained(Training(first, 30, parent=False))
    assert trained(Training(first)) == [("fast-0", 450)]


def test_a_run_that_was_deleted_begins_anew(trained, first):
    trained(Training(first, 100), Training(first, 100))
    (first.folder / "status.json").unlink()
    assert trained(Training(first)) == [("fast-0", 480)]


def test_whatever_is_killed_no_run_is_done_that_has_not_ended_as_its_time_was_up(first):
    """Between any two steps of a call; the status of a call before is none of this one's."""
    run = Training(first)
    assert not first.done
    run.say("preempted", 0)
    assert not first.done, "nobody has kept whose signal it was"
    (first.folder / "status.json").unlink()
    first.begin()
    run.say("preempted", -100)
    first.end()
    assert not first.done and first.seconds == 0, "its process has not come to say anything"
    for state in ("running", "failed"):
        run.say(state, 480)
        assert not first.done
    run.say("preempted", 480)
    assert first.done and first.seconds == pytest.approx(480, abs=60)


@pytest.mark.slow
def test_on_a_cpu_both_dials_have_the_same_curves(monkeypatch, tmp_path, capfd):
    """Exact kimg; one run in the first call, and the rest in the second, which keeps it."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tmp_path / "elsewhere"))
    config, out = CONFIGS / "stylegan2_demo.yaml", tmp_path / "out"
    overrides = (*TINY, "run.total_kimg=0.064")
    first = bench_dials(config, overrides, Request(out, None, (0, 1), runs=1))
    assert [run["state"] for run in first["runs"]] == ["finished", None, None, None] and not first["complete"]
    assert list(table(first, out))[-1] == "the same command again trains what is left"
    kept = Trained("fast", 0, out / "runs" / "fast-0").status
    capfd.readouterr()
    arguments = ["bench", "dials", "--config", config, "--kimg", 0.064, "--out", out, *TINY]
    monkeypatch.setattr(sys, "argv", ["hires-gan", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    record = json.loads((out / "dials.json").read_text())
    assert Trained("fast", 0, out / "runs" / "fast-0").status == kept, "it was trained already"
    assert record["complete"] and record["equal"] and record["differ"] == [] and not record["undecided"]
    assert {"loss/generator", "loss/discriminator_real"} <= record["metrics"].keys()
    assert record["limit"] == limit(2, len(record["metrics"])) and record["level"] == 0.05
    assert {run["trained_on"]["version.torch"] for run in record["runs"]} == {record["version.torch"]}
    for one in record["metrics"].values():
        assert one["dials"] == one["ratio"] == 0 < one["seeds"] and one["points"] > 0
    assert (out / "comparison.html").stat().st_size and (out / "comparison.png").stat().st_size
    assert not (tmp_path / "elsewhere").exists()
    assert "fast and reference have the same curves, bit by bit" in capfd.readouterr().out
