"""Steps without a part: small plans, one step of them, and the ops that are computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from small_plans import SMALL
from torch.utils._python_dispatch import TorchDispatchMode

from hires_gan.bench.train_images import Synthetic, open_images
from hires_gan.bench.train_steps import Stand
from hires_gan.config import load_configuration
from hires_gan.training.settings import Plan

CONFIGS = Path(__file__).resolve().parent.parent.parent / "configs"
CPU = torch.device("cpu")
SMALL_MUNIT = (
    "recipe.generator.base=4",
    "recipe.generator.most=8",
    "recipe.generator.features=8",
    "recipe.generator.blocks=1",
    "recipe.discriminator.base=4",
    "recipe.discriminator.most=8",
    "batch.size=4",
    "evaluation.metrics=[]",
    "evaluation.best=null",
)


def plan_of(demo: str, *overrides: str, precision: str = "fp64") -> Plan:
    small = SMALL_MUNIT if demo == "munit_demo" else SMALL
    return load_configuration(CONFIGS / f"{demo}.yaml", [*small, f"precision={precision}", *overrides])


def stand_of(plan: Plan) -> Stand:
    return Stand(plan, open_images(plan, "synthetic", CPU), CPU, None, 4)


def one_step(plan: Plan) -> tuple[Stand, Synthetic]:
    stand, dtype = stand_of(plan), torch.float64 if plan.precision == "fp64" else torch.float32
    return stand, Synthetic(stand.place.stage, CPU, dtype, domains=stand.images.domains)


class Ops(TorchDispatchMode):
    """The names of the ops that are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))
