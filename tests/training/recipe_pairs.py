"""Two backends of one recipe, of which one is `fast`: whether every step of both does the same, within rounding."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from statistics import median
from typing import Any

import torch
from recipe_steps import built, clones, run_steps
from torch import Tensor

from hires_gan.training.backends import Backend
from hires_gan.training.launch import choose_float32
from hires_gan.training.levers import AS_THE_DIAL_SAYS, Levers

State = dict[str, Tensor]


class Pair:
    """Two backends of equal recipes: one fast, one reference."""

    def __init__(
        self,
        settings: dict[str, Any],
        dtype: torch.dtype,
        levers: Levers = AS_THE_DIAL_SAYS,
        fade: bool = False,
        device: str = "cuda",
    ) -> None:
        self.fast = built(settings, device, "fast", dtype, levers=levers, fade=fade)
        self.reference = built(settings, device, "reference", dtype, fade=fade)

    @torch.no_grad()
    def level(self) -> None:
        """Give the fast one the state of the reference, in place."""
        expected = self.reference.tensors()
        for part, tensors in self.fast.tensors().items():
            for name, kept in tensors.items():
                kept.copy_(expected[part][name])
        if hasattr(self.reference.recipe, "path_mean"):
            self.fast.recipe.path_mean.copy_(self.reference.recipe.path_mean)
        if getattr(self.reference.recipe, "probability", None) is not None:
            self.fast.recipe.probability.p.copy_(self.reference.recipe.probability.p)
        if hasattr(self.reference.recipe, "terms"):
            for domain, moments in self.reference.recipe.terms.moments.items():
                self.fast.recipe.terms.moments[domain].copy_(moments)


# How far apart


_HALF = {"loss": (0.01, 0.1), "gradient": (0.05, 0.5), "gradient of R1": (0.25, 0.75), "state": (0.5, 0.9)}
"""By kind, the share in the median of steps, and at most.

Two programs in bf16 that sum in other orders, native ops and plain torch on a CPU, were apart by 0.02 in a loss at
most; in a gradient by 0.003 in the median and 0.09 at most, and in that of R1, of which few steps have any, by 0.03 and
0.3. What Adam makes of a gradient near zero may have another sign.
"""
_SINGLE = {"loss": (1e-4, 1e-3), "gradient": (1e-4, 1e-3), "gradient of R1": (1e-3, 5e-3), "state": (0.05, 0.2)}
_DIVIDES = {"fp32": (1e-3, 5e-3), "bf16": (0.05, 0.5), "fp16": (0.05, 0.5)}
"""Path lengths and their gradients: they divide by small numbers, and a difference is squared."""
_RARE = {"generator": "path_length", "discriminator": "r1"}
"""What a player's gradient holds in some steps alone."""
_ENOUGH = 5
"""Steps from which on a median says more than chance does: few have R1."""


class Apart:
    """How far apart the steps of two programs are, by what is compared."""

    def __init__(self, precision: str) -> None:
        self._precision = precision
        self._shares: dict[tuple[str, str], list[float]] = defaultdict(list)

    def losses(self, found: dict[str, float], expected: dict[str, float]) -> None:
        """One near zero is a difference of scores, and rounds as these do: a tenth of the step's largest counts."""
        assert found.keys() == expected.keys()
        least = max(1e-2, 0.1 * max(abs(value) for key, value in expected.items() if "path_length" not in key))
        for key, value in expected.items():
            if "sign" in key:  # a score that rounds across zero turns one of eight over
                continue
            size = max(abs(value), 1e-2 if "path_length" in key else least)
            self._shares["loss", key].append(abs(found[key] - value) / size)

    def gradients(self, pair: Pair, due: dict[str, float]) -> None:
        """The buffers have those of the players' last phases, which may be path lengths and R1."""
        for player, learner in pair.reference.learners.items():
            rare = any(key.startswith(f"loss/{_RARE[player]}") for key in due)
            kind = "gradient of R1" if rare and player == "discriminator" else "gradient"
            apart = pair.fast.learners[player].gradients.buffer - learner.gradients.buffer
            named = f"{player}, {_RARE[player]}" if rare else player
            self._shares[kind, named].append(_share(apart, learner.gradients.buffer))

    def states(self, pair: Pair, before: dict[str, State]) -> None:
        """By how much weights, buffers, moments and the average have moved, each kind by itself: some move far more.

        How often an optimizer has stepped is the same.
        """
        found, expected = pair.fast.tensors(), pair.reference.tensors()
        for part, was in before.items():
            for kind, names in _kinds(pair.reference, part, was).items():
                if kind == "step":
                    assert all(float(found[part][name]) == float(expected[part][name]) for name in names), part
                    continue
                apart = _flat([found[part][name] - expected[part][name] for name in names])
                moved = _flat([expected[part][name] - was[name] for name in names])
                self._shares["state", f"{part}: {kind}"].append(_share(apart, moved))

    def check(self) -> None:
        """Fail with the first that is too far apart."""
        for (kind, name), shares in self._shares.items():
            usual, most = self._limits(kind, name)
            found = median(shares), max(shares)
            assert found[1] <= most and (found[0] <= usual or len(shares) < _ENOUGH), (kind, name, *found)

    def _limits(self, kind: str, name: str) -> tuple[float, float]:
        if "path_length" in name:
            return _DIVIDES[self._precision]
        return _SINGLE[kind] if self._precision == "fp32" else _HALF[kind]


def _kinds(backend: Backend, part: str, names: Iterable[str]) -> dict[str, list[str]]:
    """The names by what they are: weights and buffers, or an optimizer's exp_avg, exp_avg_sq and step."""
    if part.endswith(".optimizer"):
        kinds = {name: name.rpartition(".")[2] for name in names}
    else:
        weights = dict(backend.recipe.players[part.removesuffix(".average")].named_parameters())
        kinds = {name: "weights" if name in weights else "buffers" for name in names}
    return {kind: [name for name in kinds if kinds[name] == kind] for kind in dict.fromkeys(kinds.values())}


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.double().flatten() for tensor in tensors])


def _share(apart: Tensor, of: Tensor) -> float:
    size = float(of.norm())
    return float(apart.norm()) / size if size else float(apart.norm() > 0)


def stay_together(pair: Pair, precision: Any, steps: int) -> None:
    """Every step of one, from the state to which the other has come, gives the same losses, gradients and state.

    Whether float32 may be TF32 is set for the whole process: tests have the fixture `as_it_was`.
    """
    apart = Apart(precision)
    for number in range(steps):
        before = _state(pair.reference)
        choose_float32(precision, "reference")
        (expected,) = run_steps(pair.reference, 1, number)
        choose_float32(precision, "fast")
        (found,) = run_steps(pair.fast, 1, number)
        apart.losses(found, expected)
        apart.gradients(pair, expected)
        if number:  # optimizers make their moments in their first step
            apart.states(pair, before)
        pair.level()
    assert int(pair.fast.nonfinite) == int(pair.reference.nonfinite) == 0
    apart.check()


def _state(backend: Backend) -> dict[str, State]:
    return {part: clones(tensors) for part, tensors in backend.tensors().items()}
