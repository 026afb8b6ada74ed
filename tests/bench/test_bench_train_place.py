"""Where in the schedule `hires-gan bench train` steps: in whole cycles of the phases, where a stage has any."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from hires_gan.bench import train
from hires_gan.bench.train import Request
from hires_gan.bench.train_steps import Place, find_place
from hires_gan.recipes.protocol import Stage

CPU = torch.device("cpu")


def test_a_place_in_a_last_cycle_that_is_none_is_in_the_one_before():
    stage = Stage(400, 400 + 4 * 40, 8, 4, 4, False, {})
    phases = [SimpleNamespace(interval=1), SimpleNamespace(interval=16)]
    recipe = SimpleNamespace(stages=[stage], phases=lambda nimg: phases)
    found = [find_place(recipe, 400 + 4 * step) for step in (0, 15, 16, 31, 32, 39)]
    assert [(place.nimg - 400) // 4 for place in found] == [0, 0, 16, 16, 16, 16]
    assert [place.room for place in found] == [32, 32, 16, 16, 16, 16]


@pytest.mark.parametrize(("steps", "room"), [(13, 13), (16, 16), (40, 32)])
def test_a_stage_shorter_than_a_cycle_has_what_is_due_in_it_and_no_more(steps, room):
    """A penalty every 16th step: with the first step over and over, it would be due in each."""
    stage = Stage(400, 400 + 4 * steps, 8, 4, 4, True, {})
    phases = [SimpleNamespace(interval=1), SimpleNamespace(interval=16)]
    recipe = SimpleNamespace(stages=[stage], phases=lambda nimg: phases)
    place = find_place(recipe, None)
    assert (place.cycle, place.room) == (16, room)
    assert [place.at(step) for step in (0, 1, room - 1, room)] == [400, 404, 400 + 4 * (room - 1), 400]


def test_a_gpu_steps_in_whole_cycles():
    place = Place(Stage(0, None, 8, 4, 4, False, {}), 0, 16, None)
    gpu = torch.device("cuda")
    assert train._counts(Request(), place, gpu) == (32, 32)
    assert train._counts(Request(steps=33, warmup=3), place, gpu) == (3, 48)
    assert train._counts(Request(), place, CPU) == (16, 2)
    assert train._counts(Request(steps=5), place, CPU) == (16, 5)
