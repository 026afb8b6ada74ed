"""Images that are not finite: no metric takes them for black ones, whoever makes them, and all processes agree."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pair_metrics import generator
from tiny_models import METRICS, requested
from torch import Tensor, nn

from hires_gan.errors import Failure
from hires_gan.evaluation import command
from hires_gan.evaluation.command import Report, evaluate, require_all
from hires_gan.evaluation.crew import Alone
from hires_gan.evaluation.describing import Description
from hires_gan.evaluation.subjects import Shown
from hires_gan.inference.images import finite
from hires_gan.inference.loading import find

CPU = torch.device("cpu")
build = command.build


def measured(root: Path, family: str, spoil: Callable[[nn.Module], object], patch: pytest.MonkeyPatch) -> Report:
    """What is found of a checkpoint that something was done to."""

    def spoiled(*arguments: Any) -> nn.Module:
        network = build(*arguments)
        with torch.no_grad():
            spoil(network)
        return network

    patch.setattr(command, "build", spoiled)
    return evaluate(find(root / "runs" / family), requested(family, 12), Alone(), CPU)


def filled(value: float) -> Callable[[nn.Module], object]:
    """All weights have this value."""
    return lambda network: [parameter.fill_(value) for parameter in network.parameters()]


@pytest.mark.parametrize("family", METRICS)
def test_a_network_whose_weights_are_nan_has_no_number(
    family: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = measured(here, family, filled(math.nan), monkeypatch)
    assert not report.result.values and not report.result.records
    assert set(report.missing) == set(METRICS[family].split(","))
    for reason in report.missing.values():
        assert "not finite" in reason and "evaluate an earlier checkpoint" in reason
    with pytest.raises(Failure, match="could not be computed, for what is said above"):
        require_all(report)


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_infinite_images_have_none_either(value: float, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As bytes they are white, or black."""

    def spoil(network: nn.Module) -> None:
        network.register_forward_hook(lambda module, inputs, images: torch.full_like(images, value))

    report = measured(here, "progressive", spoil, monkeypatch)
    assert not report.result.values
    assert set(report.missing) == set(METRICS["progressive"].split(","))


def test_one_value_is_enough_and_the_image_is_known() -> None:
    images = torch.zeros(4, 3, 8, 8, dtype=torch.bfloat16)
    images[1, 2, 7, 7], images[3, 0, 0, 0] = math.nan, -math.inf
    assert finite(images).tolist() == [True, False, True, False]
    assert finite(generator("stylegan2")(torch.zeros(2, 8))).all()


class Second(Alone):
    """One of two processes; the other was shown broken images."""

    rank, size, first = 1, 2, False

    def gathered(self, value: Any) -> list[Any]:
        return [2, value]


def test_all_processes_know_whichever_was_shown_them() -> None:
    described = Description(None, None, 70)
    described.add(range(64, 70), Shown(torch.zeros(6, 3, 8, 8, dtype=torch.uint8), finite=mask(6)))
    assert described.spoiled(70, Alone()) is None
    assert str(described.spoiled(70, Second())).startswith("2 of 70 images that the network gives are not finite;")
    described.add(range(128, 130), Shown(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), finite=mask(2, 1)))
    assert described.spoiled(129, Alone()) is None, "nobody looks at the last one"
    assert str(described.spoiled(130, Alone())).startswith("1 of 130 images")
    assert str(described.spoiled(130, Second())).startswith("3 of 130 images")


def mask(count: int, *broken: int) -> Tensor:
    found = torch.ones(count, dtype=torch.bool)
    found[list(broken)] = False
    return found
