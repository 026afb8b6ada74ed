"""What is shown of a translation, and how it is judged: both directions, fixed inputs, and a stop at any moment."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from domain_runs import MUNIT, pictures, prepared
from torch import Tensor

from hires_gan.config import Configuration
from hires_gan.data.domains import open_data
from hires_gan.data.replacement import CorruptRows
from hires_gan.data.waiting import Stopped
from hires_gan.evaluation.results import Result
from hires_gan.evaluation.subjects import chunk_at
from hires_gan.randomness import RandomSource
from hires_gan.recipes.families import build_recipe
from hires_gan.training.gallery import Translations, open_gallery
from hires_gan.training.world import World

SIDE, LEFT, RIGHT = 32, 70, 9
HERE = World(torch.device("cpu"))
GROWING = {
    "schedule": {"start_resolution": 16, "stable_kimg": 1, "fade_kimg": 1},
    "generator": MUNIT["generator"] | {"content_downs": 2},
}


@pytest.fixture(scope="module")
def domains(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("domains")
    return {
        "left": str(prepared(root / "left", pictures(LEFT, SIDE, 0))),
        "right": str(prepared(root / "right", pictures(RIGHT, SIDE, 1, turned=True))),
    }


def gallery_of(domains: dict[str, str], count: int = 8192, **recipe: Any) -> Translations:
    plan = Configuration.model_validate(
        {
            "run": {"name": "munit", "total_kimg": 1},
            "data": {"domains": domains, "workers": 0, "mirror": True},
            "recipe": MUNIT | recipe,
            "batch": {"size": 4},
            "samples": {"count": 3, "styles": 2},
            "evaluation": {"count": count},
        }
    )
    data = open_data(plan.data)
    made = build_recipe(plan.recipe, 4, torch.float32, 0, None, data.names)
    gallery = open_gallery(plan, made, data, HERE, CorruptRows(0))
    assert isinstance(gallery, Translations)
    return gallery


def never() -> bool:
    return False


def shown(gallery: Translations, domain: str, count: int) -> Tensor:
    """The first images of a domain, as they are shown: neither mirrored nor in the order of the run."""
    return torch.cat([part.clone() for part in gallery.reals[domain].first(count, never)])


class Inverting:
    """Stands for a recipe: a translation is the negative of the image, one level below full resolution."""

    domains = ("left", "right")
    random = RandomSource(0)

    def __init__(self) -> None:
        self.styles: list[int] = []

    def translate(
        self, network: torch.nn.Module, images: Tensor, samples: Tensor, nimg: int, source: str, target: str
    ) -> Tensor:
        self.styles += samples.tolist()
        return -images[:, :, ::2, ::2]


def inverting(gallery: Translations) -> Inverting:
    gallery.recipe = Inverting()  # type: ignore[assignment]
    return gallery.recipe  # type: ignore[return-value]


NETWORK = torch.nn.Linear(1, 1)


def measured(gallery: Translations, network: torch.nn.Module = NETWORK) -> dict[str, float]:
    found = gallery.measure(network, 0, never)
    assert isinstance(found, Result)
    return found.values


def test_a_table_has_a_row_for_each_input_and_a_column_for_each_style(domains: dict[str, str]) -> None:
    gallery = gallery_of(domains)
    stand_in = inverting(gallery)
    found = gallery.pictures(NETWORK, 0, never)
    assert list(found) == ["left_to_right", "right_to_left"]
    inputs = shown(gallery, "right", 3).permute(0, 2, 3, 1).numpy()
    table = found["right_to_left"].reshape(3, SIDE, 3, SIDE, 3).transpose(0, 2, 1, 3, 4)
    assert (table[:, 0] == inputs).all()
    enlarged = (255 - inputs)[:, ::2, ::2].repeat(2, 1).repeat(2, 2)
    assert (table[:, 1] == enlarged).all()
    assert (table[:, 2] == enlarged).all()
    assert stand_in.styles == [0, 1] * 6
    assert all((gallery.pictures(NETWORK, 10**6, never)[name] == found[name]).all() for name in found), "fixed inputs"


def test_each_direction_is_judged_by_the_target_domain_and_as_many_inputs(domains: dict[str, str]) -> None:
    gallery = gallery_of(domains)
    stand_in = inverting(gallery)
    assert gallery.count("swd") == RIGHT, "no more translations than there are inputs, and no more reals than that"
    found = measured(gallery)
    assert stand_in.styles == [*range(RIGHT)] * 2
    directions = ("left_to_right", "right_to_left")
    assert set(found) == {"swd"} | {f"swd/{one}{level}" for one in directions for level in ("", "/16", "/32")}
    for one in directions:
        assert found[f"swd/{one}"] == pytest.approx((found[f"swd/{one}/16"] + found[f"swd/{one}/32"]) / 2)
    assert found["swd"] == pytest.approx(sum(found[f"swd/{one}"] for one in directions) / 2)


def test_what_equals_the_target_domain_is_at_distance_zero(domains: dict[str, str]) -> None:
    gallery = gallery_of(domains)
    reals = shown(gallery, "right", RIGHT).float() / 127.5 - 1

    class Perfect(Inverting):
        def translate(
            self, network: Any, images: Tensor, samples: Tensor, nimg: int, source: str, target: str
        ) -> Tensor:
            return reals[samples] if target == "right" else images

    gallery.recipe = Perfect()  # type: ignore[assignment]
    found = measured(gallery)
    assert found["swd/left_to_right"] == 0
    assert found["swd/right_to_left"] > 0


def test_more_images_than_go_through_at_once(domains: dict[str, str]) -> None:
    assert (chunk_at(32), chunk_at(1024), chunk_at(4096)) == (64, 4, 1)
    gallery = gallery_of(domains | {"right": domains["left"], "left": domains["right"]})
    images = torch.arange(70).reshape(70, 1, 1, 1).expand(70, 3, SIDE, SIDE).to(torch.uint8)
    inverting(gallery)
    made = gallery._subject(NETWORK, 0, "left", "right").of(images, torch.arange(70))
    assert made[:, 0, 0, 0].tolist() == [255 - number for number in range(70)]


def test_a_stop_gives_up_wherever_it_comes(domains: dict[str, str]) -> None:
    gallery = gallery_of(domains)
    inverting(gallery)
    assert gallery.measure(NETWORK, 0, lambda: True) is None
    with pytest.raises(Stopped):
        for _ in gallery.reals["left"].first(3, lambda: True):
            raise Stopped
    gallery.reals["left"].first = stopping  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        gallery.pictures(NETWORK, 0, lambda: True)


def stopping(count: int, stopped: Any) -> Any:
    """The loader where data are late and nobody wants them any more."""
    raise Stopped


def test_a_network_that_has_not_grown_is_shown_as_large_as_it_will_be(domains: dict[str, str]) -> None:
    """It sees images at its own resolution, and what it makes is enlarged."""
    gallery = gallery_of(domains, **GROWING)
    network = gallery.recipe.players["generator"]
    table = gallery.pictures(network, 0, never)["left_to_right"]
    assert table.shape == (3 * SIDE, 3 * SIDE, 3)
    made = table[:SIDE, SIDE : 2 * SIDE]
    assert (made == made[::2, ::2].repeat(2, 0).repeat(2, 1)).all()
    assert np.unique(made).size > 1
    assert measured(gallery, network)["swd"] > 0
