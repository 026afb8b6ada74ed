"""Random kills: a random rank of three at a random moment, again and again, and nothing is different behind the last.

KILLS says how many (5), KILLS_SEED which ones, KILLS_OUT where a record of them goes. `make kills` does fifty.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from faulty import CLOSED
from faulty_runs import Attempt, FaultyRun, Shown, attempts, history, start, survivors, whole_checkpoints
from whole_runs import saved

from hires_gan import checkpoint
from hires_gan.bench.identity import identity
from hires_gan.bench.record_file import write_record

KILLS, SEED = int(os.environ.get("KILLS", "5")), int(os.environ.get("KILLS_SEED", "46"))
"""With this seed, five kills hit every rank, every moment, and the first process while it writes a checkpoint."""
RANKS, BATCH, STEPS = 3, 12, 300
END = BATCH * STEPS
MOMENTS = ["starting", "step", "checkpoint", "step", "checkpoint"]
LATE = 0.8
"""No kill is planned behind this share of the run, so that it cannot end before."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600 + 120 * KILLS)]


@dataclass
class Kill:
    """One of the kills, as it was planned and as it came.

    Attributes:
        moment: `starting`, before or about the first step; `step`, anywhere in one; `checkpoint`, as one is written.
        rank: Whose process.
        target: It comes at or behind so many images.
        seconds: So long after that moment.
        restarts: How often the launcher that it hits starts processes again by itself, this time included.
        nimg: Images shown when it came; None before the first step.
        torn: Whether it left a checkpoint half written.
        goes_on_from: The nimg of the latest checkpoint behind it; None if there was none.
    """

    moment: str
    rank: int
    target: int
    seconds: float
    restarts: int = 0
    nimg: int | None = None
    torn: bool = False
    goes_on_from: int | None = None


def planned(count: int, seed: int) -> list[Kill]:
    """So many kills, the same ones for the same seed."""
    chance = random.Random(seed)
    targets = sorted(chance.randrange(int(LATE * END)) for _ in range(count))
    moments = [MOMENTS[number % len(MOMENTS)] for number in range(count)]
    chance.shuffle(moments)
    return [_planned(chance, *kill) for kill in zip(moments, targets, strict=True)]


def _planned(chance: random.Random, moment: str, target: int) -> Kill:
    writer = moment == "checkpoint" and chance.random() < 0.5  # it is the first one that writes
    rank = 0 if writer else chance.randrange(RANKS)
    longest = {"starting": 3.0, "step": 0.2, "checkpoint": 0.005}[moment]
    return Kill(moment, rank, target, chance.uniform(0, longest))


@dataclass
class Hunt:
    """Kills processes of a run, which is started again each time: by its launcher, or by the same command.

    Attributes:
        folder: The run's.
        place: Where its log and its records go.
        config: Its configuration.
        chance: Decides who starts it again.
        seen: How many attempts have been killed.
        left: How often the launcher that runs now starts the processes again.
        run: That launcher; None where the same command has to be given again.
    """

    folder: Path
    place: Path
    config: Path
    chance: random.Random
    seen: int = 0
    left: int = 0
    run: FaultyRun | None = None

    def start(self) -> FaultyRun:
        """The run, started if it is not running."""
        if self.run is None:
            self.left = self.chance.randrange(3)
            self.run = start(RANKS, self.place, self.config, "run.name=killed", restarts=self.left)
        return self.run

    def strike(self, kill: Kill) -> None:
        """Kill, wait for all to end, and look at what there is."""
        run = self.start()
        run.wait_for(lambda: self._complete(run), pause=0.1)
        attempt = attempts(run.records)[self.seen]
        self._await(kill, run, attempt[0])
        kill.restarts, kill.nimg = self.left, attempt[0].nimg
        closed = run.records / CLOSED
        closed.touch()  # those that the launcher starts again wait until all has been looked at
        os.kill(attempt[kill.rank].pid, signal.SIGKILL)
        self._end(attempt, run)
        kill.torn = bool(self._half_written(attempt[0].began))
        whole_checkpoints(self.folder)
        latest = checkpoint.latest(self.folder / "checkpoints")
        kill.goes_on_from = None if latest is None else latest.nimg
        closed.unlink()

    def finish(self) -> str:
        """Let the run go on to its end; what all of it has said."""
        return self.start().ended(well=True)

    def _complete(self, run: FaultyRun) -> bool:
        found = attempts(run.records)
        return len(found) > self.seen and len(found[self.seen]) == RANKS

    def _await(self, kill: Kill, run: FaultyRun, first: Shown) -> None:
        if kill.moment != "starting":
            run.wait_for(lambda: (first.nimg or 0) >= kill.target)
        if kill.moment == "checkpoint":
            run.wait_for(lambda: bool(self._half_written(first.began)))
        time.sleep(kill.seconds)

    def _half_written(self, since: float) -> list[Path]:
        """Checkpoints that are being written, or will never be; what kills before have left is older."""
        found = []
        for place in self.folder.glob("checkpoints/.*.partial"):
            with contextlib.suppress(FileNotFoundError):
                if place.is_dir() and ".old." not in place.name and place.stat().st_mtime > since:
                    found.append(place)
        return found

    def _end(self, attempt: Attempt, run: FaultyRun) -> None:
        """All processes have to end by themselves; the launcher too, if it does not start them again."""
        end = time.monotonic() + 180
        while any(shown.running for shown in attempt.values()):
            assert time.monotonic() < end, f"a process goes on without another: {run.said}"
            time.sleep(0.01)
        self.seen += 1
        if self.left == 0:
            run.ended(well=False, seconds=180)
            self.run = None
        self.left -= 1


@pytest.fixture
def config(settings: dict[str, Any], write_config: Any) -> Path:
    """Three hundred steps, and a checkpoint behind every tenth."""
    settings["run"]["total_kimg"] = END / 1000
    settings["recipe"] |= {"resolution": 8, "schedule": {"stable_kimg": END / 4000, "fade_kimg": END / 4000}}
    settings["data"]["prefetch"] = 2
    settings["batch"]["size"] = BATCH
    settings["checkpoint"]["every_kimg"] = BATCH / 100
    settings["tracking"]["every_kimg"] = END / 8000
    settings["samples"]["every_kimg"] = None
    settings["evaluation"] = {"every_kimg": None, "metrics": [], "best": None}
    return write_config(settings)  # type: ignore[no-any-return]


@pytest.fixture
def hunt(config: Path, settings: dict[str, Any], tmp_path: Path) -> Iterator[Hunt]:
    found = Hunt(Path(settings["run"]["dir"]) / "killed", tmp_path / "killed", config, random.Random(SEED))
    yield found
    if found.run is not None:
        found.run.close()


@pytest.fixture(scope="module")
def kept() -> dict[str, Any]:
    """What the run of `undisturbed` has left, for all tests."""
    return {}


@pytest.fixture
def undisturbed(config: Path, settings: dict[str, Any], tmp_path: Path, kept: dict[str, Any]) -> dict[str, Any]:
    """The `files` of the last checkpoint without a kill, by name their checksums, and what was `shown`."""
    if not kept:
        run = start(RANKS, tmp_path / "whole", config, "run.name=whole")
        try:
            run.ended(well=True, seconds=240)
        finally:
            run.close()
        kept |= {"files": saved(settings, "whole").state["files"], "shown": history(run.records)}
    return kept


def test_kills_of_random_ranks_at_random_moments_change_nothing(
    settings: dict[str, Any], hunt: Hunt, undisturbed: dict[str, Any]
) -> None:
    """Neither a weight nor a sample nor a pixel; and no checkpoint is ever found that is not whole."""
    assert sorted(undisturbed["shown"]) == list(range(END))
    kills = planned(KILLS, SEED)
    for number, kill in enumerate(kills, 1):
        hunt.strike(kill)
        print(f"kill {number} of {KILLS}: {json.dumps(asdict(kill))}", flush=True)
    said = hunt.finish()
    assert saved(settings, "killed").nimg == END
    assert saved(settings, "killed").state["files"] == undisturbed["files"], said
    assert history(hunt.place / "records") == undisturbed["shown"]
    found = attempts(hunt.place / "records")
    assert_goes_on_where_it_was(kills, found)
    record(kills, found)


def test_a_checkpoint_of_two_processes_goes_on_in_one_and_in_three_in_the_same_order(
    config: Path, settings: dict[str, Any], tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    for ranks, total in ((2, 0.12), (1, 0.24), (3, 0.36)):
        run = start(ranks, tmp_path / "mixed", config, "run.name=mixed", f"run.total_kimg={total}")
        try:
            run.ended(well=True)
        finally:
            run.close()
        assert saved(settings, "mixed").state["world_size"] == ranks
    assert history(run.records) == {sample: undisturbed["shown"][sample] for sample in range(360)}


def assert_goes_on_where_it_was(kills: list[Kill], found: list[Attempt]) -> None:
    """Every attempt that came to a step began at the checkpoint that was the latest behind the kill before it."""
    assert len(found) == len(kills) + 1
    for kill, attempt in zip(kills, found[1:], strict=True):
        begins = {min(shown.steps) for shown in attempt.values() if shown.steps}
        assert begins <= {kill.goes_on_from or 0}


def record(kills: list[Kill], found: list[Attempt]) -> None:
    """Keep the kills where KILLS_OUT says, now that everything about them holds."""
    if "KILLS_OUT" not in os.environ:
        return
    steps = [sum(bool(samples) for samples in steps.values()) for steps in survivors(found)]
    run = {"seed": SEED, "ranks": RANKS, "steps": STEPS, "surviving_steps": steps}
    result = identity("kills") | run | {"kills": [asdict(kill) for kill in kills]}
    write_record(Path(os.environ["KILLS_OUT"]), result)
