"""What follows from measured memory: what larger micro-batches would take, which one fits, what would help."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from whole_runs import changed

from hires_gan.config import Configuration, load_configuration
from hires_gan.recipes.families import build_recipe
from hires_gan.training.launch import DTYPES
from hires_gan.training.memory import NOT_TRIED, Measured, StageMemory
from hires_gan.training.memory_advice import (
    MARGIN,
    costly_ways,
    fits,
    free_ways,
    in_words,
    may_take_most,
    needed,
    suggest,
    table,
)
from hires_gan.training.trainer import micro_batch

CONFIGS = Path(__file__).resolve().parent.parent.parent / "configs"


def stage_memory(*measured: Measured, own: int = 32, capacity: int = 1000, group: int = 4) -> StageMemory:
    return StageMemory(0, 64, False, own, group, own, capacity, "cuda", "a card", "", measured)


def straight(micro: int, base: int = 100, each: int = 10) -> Measured:
    return Measured(micro, 50, 10, {"one": base + each * micro, "other": base}, 5, base + each * micro + 5)


def test_what_is_predicted_lies_on_a_line():
    found = stage_memory(straight(4), straight(8))
    assert needed(found, 4) == (145, False) and needed(found, 8) == (185, False)
    assert needed(found, 12) == (225, True) and needed(found, 32) == (425, True)
    assert needed(stage_memory(straight(4)), 8) is None
    assert needed(stage_memory(straight(4), Measured(8, failed="one")), 8) is None


def test_what_is_predicted_is_no_less_than_what_fewer_images_took():
    """4, 10 and 18 at 4, 8 and 32 images: memory does not grow as from 4 to 32."""
    found = stage_memory(*(Measured(micro, whole=whole) for micro, whole in ((4, 40), (8, 100), (32, 180))))
    assert [needed(found, micro) for micro in (6, 12, 24, 44)] == [(70, True), (114, True), (154, True), (220, True)]
    falling = stage_memory(*(Measured(micro, whole=whole) for micro, whole in ((4, 40), (8, 100), (12, 90))))
    assert needed(falling, 16) == (100, True)


def test_the_phase_that_grows_fastest_tells_in_the_end():
    small = Measured(4, phases={"steep": 100, "flat": 200}, whole=200)
    large = Measured(8, phases={"steep": 190, "flat": 210}, whole=210)
    assert needed(stage_memory(small, large), 16) == (190 + 180, True)


@pytest.mark.parametrize(
    ("capacity", "micro", "passes", "largest", "predicted"),
    [
        (1000, 32, 1, 32, True),  # 425 of 920
        (425, 16, 2, 16, True),  # 391 are left with the margin: 16 take 265; 28 would leave 4 for a pass of their own
        (245, 8, 4, 8, False),  # 225.4: 12 would leave 8
        (210, 8, 4, 8, False),
        (160, 4, 8, 4, False),
    ],
)
def test_the_suggestion(capacity, micro, passes, largest, predicted):
    found = suggest(stage_memory(straight(4), straight(8), capacity=capacity))
    assert (found.micro, found.passes, found.largest, found.predicted) == (micro, passes, largest, predicted)
    assert found.whole <= capacity * (1 - MARGIN)


def test_no_suggestion_where_not_even_one_group_fits():
    assert suggest(stage_memory(straight(4), straight(8), capacity=150)) is None  # 145 fits, but not with the margin
    assert fits(stage_memory(straight(4), capacity=150), 4) and not fits(stage_memory(straight(4), capacity=144), 4)
    assert suggest(stage_memory(Measured(4, failed="one"))) is None


def test_nothing_above_what_did_not_fit_is_suggested():
    found = stage_memory(straight(4), straight(8), Measured(16, failed="one"), own=24)
    assert suggest(found).largest == 12
    assert suggest(stage_memory(straight(4), Measured(8, failed=NOT_TRIED))).micro == 4


def test_what_was_not_tried_has_not_failed():
    assert suggest(stage_memory(straight(4), straight(8), Measured(32, failed=NOT_TRIED))).micro == 32


def test_a_smaller_last_micro_batch_is_not_predicted():
    """It runs beside what graphs of the others keep; measured, both are known."""
    graphs = [Measured(micro, whole=2 + micro) for micro in (4, 8)]
    assert suggest(stage_memory(*graphs, capacity=17)).largest == 8  # 12 were 14 by the line, and 22 with 8 more beside
    assert suggest(stage_memory(*graphs, Measured(12, whole=14), capacity=17)).micro == 12


def test_a_device_without_room_has_a_table_too():
    assert "inf%" in table(stage_memory(straight(4), capacity=0))[-1]


def test_a_share_that_is_no_multiple_of_a_group_goes_as_a_whole():
    found = suggest(stage_memory(straight(4), straight(8), own=10))
    assert (found.micro, found.passes) == (10, 1)


def test_what_would_help_is_what_there_is(settings):
    plan = Configuration.model_validate(changed(settings, recipe={"discriminator": {"group_size": 4}}))
    assert free_ways(plan, "cuda", 4, 8) == [
        "batch.per_device below 8 (a multiple of 4)",
        "levers.graphs=false, which keeps none for CUDA graphs",
    ]
    assert free_ways(plan, "cpu", 4, 8, 4) == ["batch.per_device=4"]
    divided = Configuration.model_validate(settings | {"backend": {"name": "deepspeed"}})
    assert free_ways(divided, "cuda", 4, 8, 4) == ["batch.per_device=4"], "none is recorded with DeepSpeed"
    assert costly_ways(plan, 4) == [
        "precision=bf16",
        "recipe.discriminator.group_size below 4",
        "recipe.resolution=8",
    ]
    other = Configuration.model_validate(
        {
            "run": {"name": "munit", "total_kimg": 1},
            "data": {"domains": {"a": "/a", "b": "/b"}},
            "recipe": {"name": "munit", "resolution": 64},
            "precision": "bf16",
            "performance": "reference",
        }
    )
    assert free_ways(other, "cuda", 1, 1) == ["recipe.generator.recompute=true"]
    assert costly_ways(other, 1) == ["recipe.resolution=32"]


def test_the_table(settings):
    found = stage_memory(straight(4), Measured(8, 50, 10, {"one": 180}, failed="other"), Measured(12, failed=NOT_TRIED))
    plan = Configuration.model_validate(settings)
    lines = table(found)
    (other,) = (line for line in lines if line.startswith("phase other"))
    assert other.split()[2:] == ["0.0", "MiB", "10.0%", "out", "of", "memory", "-"]
    assert lines[-1].split()[-5:] == ["out", "of", "memory", "not", "tried"]
    assert in_words(found, plan).startswith(
        "batch.per_device=4: 0.0 MiB measured, 14.5% of what there is; the 32 images"
    )
    full = stage_memory(straight(4), capacity=100)
    assert in_words(full, plan).startswith("not even 4 images at once fit at all: set levers.graphs=false")
    assert in_words(replace(full, fade=True), plan) == in_words(full, plan), "fades are recorded, too"
    assert "fit with 8% to spare" in in_words(stage_memory(straight(4), capacity=150), plan)


@pytest.mark.parametrize(
    ("name", "overrides", "expected"),
    [
        ("progressive_celebahq1024", [], [(512, 16), (1024, 4)]),
        ("stylegan_ffhq1024", [], [(512, 16), (1024, 4)]),
        ("stylegan2_ffhq1024", [], [(1024, 4)]),
        ("progressive_celebahq1024", ["batch.per_device=4"], [(1024, 4)]),
    ],
)
def test_the_stages_that_may_take_most(name, overrides, expected):
    plan = load_configuration(CONFIGS / f"{name}.yaml", overrides)
    recipe = build_recipe(plan.recipe, plan.batch.size, DTYPES[plan.precision], 0, None, ("image",))
    found = may_take_most(recipe.stages, lambda stage: micro_batch(plan.batch, stage))
    assert [(stage.resolution, micro_batch(plan.batch, stage)) for stage in found] == expected
    assert found[-1] is recipe.stages[-1] and not any(stage.fade for stage in found)
    assert may_take_most([], lambda stage: 1) == []
