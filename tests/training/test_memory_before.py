"""Memory before the run: what is measured changes nothing, a card that is too small is refused, and it is told why."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from forked_ranks import Ranks
from whole_runs import changed, run, saved

from hires_gan.config import Configuration
from hires_gan.errors import Elsewhere, Failure
from hires_gan.recipes.families import build_recipe
from hires_gan.training import memory_check
from hires_gan.training.backends import Backend
from hires_gan.training.launch import DTYPES
from hires_gan.training.memory import DryRun, held, place_in
from hires_gan.training.memory_check import FILE, Asked, check_memory, known_memory
from hires_gan.training.resume_rules import may_change
from hires_gan.training.trainer import Trainer
from hires_gan.training.world import World

CPU = torch.device("cpu")
MB = 10**6


class SimulatedCard:
    """A card on which a step of n images takes 100 + 10 n MB, and which has no more than it has.

    Args:
        capacity: In MB.
    """

    place, remark, kills = "a simulated card", "", False

    def __init__(self, capacity: float) -> None:
        self.capacity = round(capacity * MB)
        self._last = 0
        self.steps: list[tuple[int, int]] = []

    def step(self, side: int, images: int, micro: int) -> None:
        self.steps.append((side, micro))
        self._last = (100 + 10 * min(micro, images)) * MB
        if self._last > self.capacity:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate too much.\nSee the documentation.")

    def begin(self) -> None: ...

    def peak(self) -> int:
        return self._last

    def pooled(self) -> int:
        return 0

    def outside(self) -> int:
        return 0


@pytest.fixture
def card(monkeypatch):
    """Let this machine's CPU be taken for a card of so many MB, on which dry steps are quick."""

    def installed(capacity: float) -> SimulatedCard:
        found = SimulatedCard(capacity)
        step, dry = Backend.step, DryRun._step
        inside: list[bool] = []

        def counted(backend: Backend, phases: Any, batch: Any, first: int, micro: int) -> Any:
            if inside:
                found.step(batch.images.shape[-1], len(batch), micro)
            return step(backend, phases, batch, first, micro)

        def dry_step(self: DryRun, *arguments: Any) -> None:
            inside.append(True)
            try:
                dry(self, *arguments)
            finally:
                inside.pop()

        monkeypatch.setattr(memory_check, "QUICK", ("cpu",))
        monkeypatch.setattr(memory_check, "meter_of", lambda device: found)
        monkeypatch.setattr(Backend, "step", counted)
        monkeypatch.setattr(DryRun, "_step", dry_step)
        return found

    return installed


@pytest.fixture
def short(settings) -> dict[str, Any]:
    """Four steps of 16 images at 4x4, of a run that would grow to 16x16."""
    blocks = {"run": {"total_kimg": 0.064}, "samples": {"every_kimg": None}, "evaluation": {"every_kimg": None}}
    return changed(settings, **blocks)


def folder_of(settings: dict[str, Any]) -> Path:
    return Path(settings["run"]["dir"]) / settings["run"]["name"]


def dry_run(settings: dict[str, Any], meter: Any = None) -> tuple[DryRun, Any]:
    """A dry run, and the recipe's stages."""
    plan = Configuration.model_validate(settings)
    recipe = build_recipe(plan.recipe, plan.batch.size, DTYPES[plan.precision], plan.run.seed, None, ("image",))
    return DryRun(plan, None, ("image",), CPU, meter), recipe.stages


# What is measured


def test_a_run_is_the_same_bit_for_bit_behind_it(short, monkeypatch):
    run(short)
    monkeypatch.setattr(memory_check, "QUICK", ("cpu",))
    other = changed(short, run={"name": "measured"})
    run(other)
    assert (folder_of(other) / FILE).is_file() and not (folder_of(short) / FILE).exists()
    assert saved(other).state["files"] == saved(short).state["files"]


def test_no_generator_is_drawn_from(short):
    states = torch.random.get_rng_state(), np.random.get_state()[1].tobytes(), random.getstate()
    dry, stages = dry_run(short)
    with dry:
        dry.measure(stages[-1], 16, [8])
    assert torch.equal(states[0], torch.random.get_rng_state())
    assert states[1:] == (np.random.get_state()[1].tobytes(), random.getstate())


def test_weights_and_images_are_counted(short):
    """Of each player that learns weights, a gradient and two moments; the average; float and byte images."""
    dry, stages = dry_run(short)
    with dry:
        backend = dry._entered(stages[-1])
        learning = {name: sum(p.nbytes for p in live.values()) for name, live in backend.live.items()}
        whole = {name: sum(v.nbytes for v in p.state_dict().values()) for name, p in backend.recipe.players.items()}
        moments = 3 * sum(learning.values())
        counters = held(backend) - moments - 2 * whole["generator"] - whole["discriminator"]
        assert counters == 4 * sum(len(live) for live in backend.live.values())  # Adam's `step` of each parameter
        (one,) = dry.measure(stages[-1], 12, [8]).measured
    assert one.images == 12 * 3 * 16 * 16 * (4 + 1)
    assert one.weights == moments + counters + 2 * whole["generator"] + whole["discriminator"]
    assert set(one.phases) == {"discriminator", "generator"} and one.whole == max(one.phases.values())


def test_a_last_micro_batch_that_is_smaller_is_computed_too(short, monkeypatch):
    seen: list[tuple[int, int]] = []
    step = Backend.step
    monkeypatch.setattr(
        Backend,
        "step",
        lambda self, ps, batch, *rest: seen.append((len(batch), rest[1])) or step(self, ps, batch, *rest),
    )
    dry, stages = dry_run(short)
    with dry:
        dry.measure(stages[-1], 16, [4])
        dry.measure(stages[-1], 12, [8])
    assert seen == [(4, 4)] * 2 + [(12, 8)] * 2


def test_a_fade_is_measured_in_its_middle(settings):
    plan = Configuration.model_validate(settings)
    recipe = build_recipe(plan.recipe, 16, torch.float32, 0, None)
    fade = next(stage for stage in recipe.stages if stage.fade)
    assert fade.start < place_in(recipe, fade) < fade.end
    assert place_in(recipe, recipe.stages[-1]) == recipe.stages[-1].start


def test_what_is_no_lack_of_memory_is_a_bug(short, monkeypatch):
    monkeypatch.setattr(Backend, "step", lambda *_: torch.zeros(2) @ torch.zeros(3))
    dry, stages = dry_run(short)
    with pytest.raises(RuntimeError, match="inconsistent tensor size"), dry:
        dry.measure(stages[0], 16, [4])


# Before a run


def test_a_card_that_is_too_small_is_refused_before_anything_is_left(short, card, capfd):
    found = card(210)
    with pytest.raises(Failure) as refused:
        run(changed(short, batch={"per_device": 16}))
    said = capfd.readouterr().err
    assert str(refused.value) == (
        "the run does not fit, and has not begun: at 4x4 with 16 images at once the memory is exhausted by "
        "the discriminator phase (a simulated card): set batch.per_device=8; that changes nothing of what is trained; "
        "run.check_memory=false starts all the same"
    )
    assert not folder_of(short).exists()
    assert [line.split()[0] for line in said.splitlines() if "out of memory" in line] == ["phase", "in"]
    assert found.steps[:1] == [(4, 16)] and {micro for _, micro in found.steps} == {4, 8, 16}


def test_the_last_stage_is_refused_at_the_start(settings, card):
    found = card(210)
    more = changed(settings, batch={"size": {4: 8, 16: 16}, "per_device": 16})  # the first stage would fit
    with pytest.raises(
        Failure, match="at 16x16 with 16 images at once the memory is exhausted by the discriminator phase"
    ):
        check_memory(asked(more), None, ("image",))
    assert [side for side, _ in found.steps[:2]] == [4, 4]
    check_memory(asked(changed(more, run={"total_kimg": 0.064})), None, ("image",))  # it never comes to 16x16


def test_a_stage_before_the_last_that_takes_more_is_refused_at_the_start(settings, card):
    """As many pixels, but a quarter of the images: channels tell, and twice as many are usual at half the side."""
    found = card(210)
    more = changed(settings, batch={"size": {4: 4, 8: 16, 16: 4}, "per_device": "auto"})
    with pytest.raises(Failure, match="at 8x8 with 16 images at once the memory is exhausted by"):
        check_memory(asked(more), None, ("image",))
    assert {side for side, _ in found.steps} == {4, 8, 16}


def test_it_starts_all_the_same_where_nobody_wants_to_know(short, card):
    found = card(1)
    assert run(changed(short, run={"check_memory": False}))
    assert found.steps == [] and not (folder_of(short) / FILE).exists()
    assert may_change("run.check_memory")


@pytest.mark.parametrize(
    ("capacity", "per_device", "told"),
    [
        (10_000, 8, "memory at 4x4, 8 images at once: 171.7 MiB of 9.31 GiB, measured by dry steps in 0 s"),
        (10_000, "auto", "0 s; batch.per_device=16 would fit, too: 248.0 MiB (predicted)"),
        (185, 8, "171.7 MiB of 176.4 MiB, measured by dry steps in 0 s; caution: less than 8% is left for evaluations"),
    ],
)
def test_what_is_told_of_a_run_that_fits(capacity, per_device, told, short, card, monkeypatch, capfd):
    """A number was asked for, or nothing was: then a larger one that fits is named."""
    if per_device == "auto":
        monkeypatch.setattr(memory_check, "micro_batch", lambda settings, stage: 4)
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    card(capacity)
    check_memory(asked(changed(short, batch={"per_device": per_device})), None, ("image",))
    said = capfd.readouterr().err
    assert told in said
    assert ("would fit" in said) == (per_device == "auto")


def test_a_resume_does_not_measure_again_but_looks_at_the_card(settings, card, capfd):
    watched_less = {"samples": {"every_kimg": None}, "evaluation": {"every_kimg": None}}
    begun, first = changed(settings, **watched_less), card(1000)
    with pytest.MonkeyPatch.context() as patch:
        _stop_after(patch, 3)
        assert not run(begun)
    assert {side for side, _ in first.steps} == {4, 16}
    before = (folder_of(begun) / FILE).read_text()
    less = card(150)  # another program has taken the rest
    with pytest.raises(
        Failure, match=r"and does not go on: at 4x4 with 8 images at once a step takes more than 143\.1"
    ):
        run(begun)
    more = card(1000)
    capfd.readouterr()
    assert run(begun)
    assert less.steps == more.steps == [] and (folder_of(begun) / FILE).read_text() == before
    assert capfd.readouterr().err.count("as measured before") == 2


def test_a_resume_in_another_stage_measures_that_one_alone(settings, card, capfd):
    first = card(1000)
    check_memory(asked(settings), None, ("image",))
    assert {side for side, _ in first.steps} == {4, 16}
    second = card(1000)
    capfd.readouterr()
    fade = next(stage for stage in asked(settings).recipe.stages if stage.resolution == 8)
    check_memory(asked(settings, nimg=fade.start), None, ("image",))
    assert {side for side, _ in second.steps} == {8}
    said = capfd.readouterr().err
    assert re.search(r"at 16x16, 8 images at once: .*, as measured before", said)
    assert re.search(r"at 8x8, 8 images at once: .*, measured by dry steps", said)
    assert [one.resolution for one in known_memory(asked(settings))] == [4, 8, 16]
    third = card(1000)
    check_memory(asked(settings, nimg=fade.start), None, ("image",))
    assert third.steps == []


def _stop_after(patch: pytest.MonkeyPatch, steps: int) -> None:
    """Let a run hear a signal so many steps after its start."""
    step, done = Trainer._step, []

    def counted(self: Trainer, *arguments: Any) -> None:
        step(self, *arguments)
        done.append(1)
        if len(done) == steps:
            os.kill(os.getpid(), signal.SIGTERM)

    patch.setattr(Trainer, "_step", counted)


# The file


def asked(settings: dict[str, Any], nimg: int = 0, world: World | None = None) -> Asked:
    plan = Configuration.model_validate(settings)
    recipe = build_recipe(plan.recipe, plan.batch.size, DTYPES[plan.precision], plan.run.seed, None)
    return Asked(plan, recipe, World(CPU) if world is None else world, folder_of(settings), nimg)


def test_what_the_figures_hold_for(settings):
    key = asked(settings).key()
    assert key == asked(changed(settings, run={"name": "other", "total_kimg": 9})).key()
    assert key == asked(changed(settings, tracking={"every_kimg": 1}), nimg=32).key()
    assert key != asked(changed(settings, batch={"per_device": 4})).key()
    assert key != asked(changed(settings), world=SimpleNamespace(device=CPU, rank=0, size=2)).key()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"KEY": [{"start": 0}]}', '{"KEY": [1]}'])
def test_a_file_that_says_nothing_is_as_none(settings, text):
    wanted = asked(settings)
    wanted.folder.mkdir(parents=True)
    (wanted.folder / FILE).write_text(text.replace("KEY", wanted.key()))
    assert known_memory(wanted) == []


def test_what_is_kept_comes_back(settings, card):
    card(1000)
    wanted = asked(settings)
    check_memory(wanted, None, ("image",))
    found = known_memory(wanted)
    assert [(one.start, one.resolution, [each.micro for each in one.measured]) for one in found] == [
        (0, 4, [8]),
        (384, 16, [8]),
    ]
    assert all(each.whole == 180 * MB for one in found for each in one.measured)
    assert known_memory(asked(changed(settings, batch={"size": 8}))) == []


# In the middle of a run


def run_out(monkeypatch, steps: int) -> None:
    """Let an allocation of the run fail behind so many steps."""
    from hires_gan.training import backends

    runner, done = backends.PhaseRunner.run, []

    def failing(self: Any, *arguments: Any) -> Any:
        done.append(1)
        if len(done) > steps:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nSee the documentation.")
        return runner(self, *arguments)

    monkeypatch.setattr(backends.PhaseRunner, "run", failing)


def test_out_of_memory_in_a_run_ends_with_what_was_measured_before(short, monkeypatch, capfd):
    monkeypatch.setattr(memory_check, "QUICK", ("cpu",))
    run_out(monkeypatch, 5)  # the two phases of a dry step at 4x4, and a step and a half of the run
    with pytest.raises(Failure) as ended:
        run(short)
    said, message = capfd.readouterr().err, str(ended.value)
    assert message.startswith("out of memory at 4x4 with 8 images at once: set batch.per_device below 8")
    assert message.endswith("(CUDA out of memory. Tried to allocate 2 GiB.)") and "\n" not in message
    assert "what dry steps took before the run:" in said and "phase generator" in said
    status = json.loads((folder_of(short) / "status.json").read_text())
    assert (status["state"], status["message"]) == ("failed", message)


def test_networks_that_do_not_fit_at_all(short, monkeypatch):
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nSee the documentation.")

    monkeypatch.setattr(Backend, "__init__", full)
    with pytest.raises(
        Failure, match=r"out of memory before the first step \(CUDA out of memory. Tried .* 2 GiB.\): not"
    ):
        run(short)
    assert not folder_of(short).exists()


# Several processes


def too_small(world: World, folder: Path, settings: dict[str, Any], capacities: list[float]) -> int:
    """Check on a card of one's own; 3 for the one who tells, 4 for the others."""
    mine = SimulatedCard(capacities[world.rank])
    memory_check.QUICK = ("cpu",)  # type: ignore[assignment]
    memory_check.meter_of = lambda device: mine  # type: ignore[assignment,return-value]
    step = Backend.step

    def counted(backend: Backend, phases: Any, batch: Any, first: int, micro: int) -> Any:
        mine.step(batch.images.shape[-1], len(batch), micro)
        return step(backend, phases, batch, first, micro)

    Backend.step = counted  # type: ignore[method-assign]
    code = 0
    try:
        check_memory(asked(settings, world=world), None, ("image",))
    except Failure as error:
        print(error, file=sys.stderr)
        code = 3
    except Elsewhere:
        code = 4
    world.leave()
    return code


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Ranks]:
    with closing(Ranks(tmp_path)) as found:
        yield found


def test_of_two_processes_one_is_too_small(processes, settings):
    processes.start(2, too_small, changed(settings, batch={"size": 32, "per_device": 16}), [1000, 210])
    said = processes.ended(0, 3)
    processes.ended(1, 4)
    assert "rank 1: the run does not fit, and has not begun: at 4x4 with 16 images at once" in said
    assert "set batch.per_device=8" in said and "out of memory" in said
    assert not (folder_of(settings) / FILE).exists()


def test_two_processes_that_are_large_enough(processes, settings):
    processes.start(2, too_small, settings, [1000, 900])
    said = processes.ended(0, 0)
    assert processes.ended(1, 0) == "", "only the first one speaks"
    assert said.count("memory at") == 2
    kept = json.loads((folder_of(settings) / FILE).read_text())
    (found,) = kept.values()  # both have 8 images of a step on equal cards
    assert [one["own"] for one in found] == [8, 8]


# On a GPU


WIDE = {
    "generator": {"latent_size": 64, "fmap_base": 8192, "fmap_max": 512},
    "discriminator": {"fmap_base": 8192, "fmap_max": 512},
}


@pytest.mark.gpu
class TestOnGpu:
    @pytest.mark.parametrize("performance", ["fast", "reference"])
    def test_the_figures_are_those_of_the_run(self, settings, performance):
        """The most that the run allocates, or with graphs reserves, is what dry steps said."""
        own = changed(settings, recipe=WIDE, samples={"every_kimg": None}, evaluation={"every_kimg": None})
        own |= {"performance": performance, "precision": "bf16"}
        torch.cuda.empty_cache()
        now, most, slack = torch.cuda.memory_allocated, torch.cuda.max_memory_allocated, 1.1
        if performance == "fast":
            # What graphs keep is reserved, and that is rounded up to whole segments.
            now, most, slack = torch.cuda.memory_reserved, torch.cuda.max_memory_reserved, 1.25
        before = now()
        assert run(own)  # torch's peaks are from behind the dry steps
        largest = most() - before
        kept = json.loads((folder_of(own) / FILE).read_text())
        (stages,) = kept.values()
        assert [one["resolution"] for one in stages] == [4, 16]
        whole = max(one["whole"] - one["outside"] for stage in stages for one in stage["measured"])
        assert whole > 100 * MB
        assert 0.8 * whole < largest < slack * whole
        assert all(0 < one["capacity"] <= torch.cuda.get_device_properties(0).total_memory for one in stages)

    def test_a_card_that_is_too_small_is_refused(self, settings, capfd):
        torch.cuda.empty_cache()
        whole, before = torch.cuda.get_device_properties(0).total_memory, torch.cuda.memory_allocated()
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 48 * 2**20) / whole)
        try:
            with pytest.raises(Failure, match="the run does not fit, and has not begun: at 4x4"):
                run(changed(settings, recipe=WIDE))
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
            torch.cuda.empty_cache()
        assert "out of memory" in capfd.readouterr().err
        assert not folder_of(settings).exists()
        # Others before may have left something: what cuBLAS works in is torch's, and stays.
        assert torch.cuda.memory_allocated() - before < 8 * MB, "the networks of dry steps are gone"
