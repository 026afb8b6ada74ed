"""The controller of the augmentation's probability: the overfitting heuristic r_t (Karras et al. 2020b, section 3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hires_gan.augment.settings import ProbabilitySettings


class AdaptiveProbability:
    """p, steered so that the mean sign of D(real) stays at a target: more augmentation where D grows too sure.

    Every `interval` steps, p moves by as many images as were shown in them, divided by `kimg` thousand: up where the
    mean of sign(D(real)) over them exceeds the target, down where it is below. All of it is arithmetic of tensors on
    the device of the means, and nothing is read before a checkpoint is written.

    Args:
        settings: Target, speed and bounds, or one fixed probability.

    Attributes:
        p: float64, without dimensions: the probability for the next step.
    """

    def __init__(self, settings: ProbabilitySettings) -> None:
        self.settings = settings
        start = min(settings.initial, settings.maximum) if settings.fixed is None else settings.fixed
        self.p = torch.tensor(start, dtype=torch.float64)
        self._sum = torch.zeros((), dtype=torch.float64)
        self._images = 0
        self._steps = 0

    def advance(self, mean_sign: Tensor | float, images: int) -> None:
        """Take one step's statistics in, and move p if the interval is over.

        A mean that is not a number (D's output is not finite) leaves p where it is.

        Args:
            mean_sign: The mean of sign(D(real)) over the step's global batch, equal on every rank.
            images: The global batch.
        """
        if self.settings.fixed is not None:
            return
        mean = torch.as_tensor(mean_sign, dtype=torch.float64).detach().reshape(())
        self._sum = self._sum.to(mean.device) + mean * images
        self._images += images
        self._steps += 1
        if self._steps >= self.settings.interval:
            self._move()

    def on(self, device: torch.device) -> Tensor:
        """P on a device, where it stays from then on: the same tensor, which is only changed in place."""
        self.p = self.p.to(device)
        return self.p

    def _move(self) -> None:
        direction = (self._sum / self._images - self.settings.target).sign().nan_to_num(0)
        change = direction * (self._images / (self.settings.kimg * 1000))
        self.on(change.device).add_(change).clamp_(0, self.settings.maximum)
        self._sum = torch.zeros_like(self._sum)
        self._images = self._steps = 0

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON values from which everything is restored bit for bit; reads the device."""
        total = float(self._sum)
        finite = math.isfinite(total)
        return {
            "p": float(self.p),
            "sum": total if finite else 0.0,
            "finite": finite,
            "images": self._images,
            "steps": self._steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave; a fixed probability stays what the settings say."""
        if self.settings.fixed is None:
            self.p.fill_(state["p"])
        self._sum = torch.tensor(state["sum"] if state["finite"] else float("nan"), dtype=torch.float64)
        self._images, self._steps = state["images"], state["steps"]
