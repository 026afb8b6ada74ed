"""The calls of the ops that training makes: StyleGAN2's config F at 1024x1024, and ADA on its images.

A case knows its tensors, how to call our op and the plain-torch reference, and how many bytes each pass must at least
move: every large tensor that the result depends on is read once, every result is written once. What is kept between
the passes is x and y themselves; nothing smaller is assumed in their stead.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from hires_gan import ops
from hires_gan.ops import reference

Size = Literal["small", "full"]
Pass = Literal["forward", "backward", "double backward"]
PASSES: tuple[Pass, ...] = ("forward", "backward", "double backward")
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

_CLAMP = 256.0
_PARAMETER = 4
"""Bytes of a number in the small tensors, which are float32 whatever the dtype of the images."""

Make = Callable[..., Tensor]
"""Makes random numbers of mean 0.5: `make(*shape)` in the dtype and layout of the images, `dtype=` for another one."""


@dataclass(frozen=True)
class Case(ABC):
    """One call that training makes."""

    name: str
    shape: tuple[int, ...]
    """Of x."""

    learned: ClassVar[tuple[int, ...]] = (0,)
    """Which inputs get a gradient; x is the first."""
    penalised: ClassVar[tuple[int, ...]] = (0,)
    """Whose gradients, of those, a penalty differentiates again."""

    @property
    def output(self) -> tuple[int, ...]:
        """The shape of y."""
        return self.shape

    @property
    def layouts(self) -> tuple[str, ...]:
        """The memory layouts that x can have."""
        return tuple(LAYOUTS) if len(self.shape) == 4 else ("contiguous",)

    @abstractmethod
    def inputs(self, make: Make) -> list[Tensor]:
        """The tensors of one call."""

    @abstractmethod
    def ours(self, *inputs: Tensor) -> Tensor:
        """Call our op."""

    @abstractmethod
    def plain(self, *inputs: Tensor) -> Tensor:
        """Call the reference in plain torch."""

    @abstractmethod
    def moved(self, item: int) -> dict[Pass, int]:
        """The bytes that each pass must at least move, at `item` bytes per number of an image."""


@dataclass(frozen=True)
class BiasAct(Case):
    """Bias, activation, gain and clamp: in D's layers, the mapping network and the layers that make colours."""

    act: str = "lrelu"
    clamp: float | None = _CLAMP

    learned: ClassVar[tuple[int, ...]] = (0, 1)

    @property
    def _numbers(self) -> tuple[float, float]:
        """Alpha and gain."""
        return (0.2, math.sqrt(2)) if self.act == "lrelu" else (0.0, 1.0)

    def inputs(self, make: Make) -> list[Tensor]:
        """X and the bias."""
        return [make(*self.shape), make(self.shape[1], dtype=torch.float32)]

    def ours(self, *inputs: Tensor) -> Tensor:
        """Call our op."""
        x, b = inputs
        alpha, gain = self._numbers
        return ops.bias_act(x, b, act=self.act, alpha=alpha, gain=gain, clamp=self.clamp)

    def plain(self, *inputs: Tensor) -> Tensor:
        """Call the reference in plain torch."""
        x, b = inputs
        alpha, gain = self._numbers
        return reference.bias_act(x, b, 1, self.act, alpha, gain, self.clamp)

    def moved(self, item: int) -> dict[Pass, int]:
        """x, b -> y; dy, y -> dx, db; v, y -> the gradient of dy. All acts here are linear in pieces."""
        images, bias = math.prod(self.shape) * item, self.shape[1] * _PARAMETER
        return {"forward": 2 * images + bias, "backward": 3 * images + bias, "double backward": 3 * images}


@dataclass(frozen=True)
class Epilogue(Case):
    """What follows a modulated convolution: demodulation, noise, bias, leaky ReLU, gain and clamp."""

    learned: ClassVar[tuple[int, ...]] = (0, 1, 3, 4)
    penalised: ClassVar[tuple[int, ...]] = (0, 1)  # the path-length penalty reaches the styles through both

    def inputs(self, make: Make) -> list[Tensor]:
        """X, demodulation, noise, the noise's strength and the bias."""
        n, c, h, w = self.shape
        parameter = partial(make, dtype=torch.float32)
        return [make(n, c, h, w), parameter(n, c), make(n, 1, h, w), parameter(), parameter(c)]

    def ours(self, *inputs: Tensor) -> Tensor:
        """Call our op."""
        x, demodulation, noise, strength, b = inputs
        return ops.epilogue(x, demodulation, noise, strength, b, "lrelu", 0.2, math.sqrt(2), _CLAMP)

    def plain(self, *inputs: Tensor) -> Tensor:
        """Call the reference in plain torch."""
        x, demodulation, noise, strength, b = inputs
        return reference.epilogue(x, demodulation, noise, strength, b, "lrelu", 0.2, math.sqrt(2), _CLAMP)

    def moved(self, item: int) -> dict[Pass, int]:
        """x, noise, parameters -> y; dy, y, x, noise -> dx, gradients; v, dy, y, x -> the gradients of dy and x."""
        n, c, h, w = self.shape
        images, noise = math.prod(self.shape) * item, n * h * w * item
        styles, bias, strength = n * c * _PARAMETER, c * _PARAMETER, _PARAMETER
        return {
            "forward": 2 * images + noise + styles + strength + bias,
            "backward": 4 * images + noise + 2 * styles + strength + bias,
            "double backward": 6 * images + 3 * styles,
        }


@dataclass(frozen=True)
class Fir(Case):
    """upfirdn2d with the filter that training has there, as one 2-D filter or as one 1-D filter for both axes."""

    taps: int = 4
    separable: bool = False
    up: int = 1
    down: int = 1
    padding: tuple[int, int] = (0, 0)
    """Before and after, the same on both axes."""
    gain: float = 1.0

    @property
    def output(self) -> tuple[int, ...]:
        """The shape of y."""
        n, c, *sides = self.shape
        return (n, c, *((side * self.up + sum(self.padding) - self.taps) // self.down + 1 for side in sides))

    def inputs(self, make: Make) -> list[Tensor]:
        """X and the filter: binomial, which stands here for any other of its length."""
        x = make(*self.shape)
        line = torch.tensor([math.comb(self.taps - 1, tap) for tap in range(self.taps)], dtype=torch.float32)
        line = (line / line.sum()).to(x.device)
        return [x, line if self.separable else torch.outer(line, line)]

    def ours(self, *inputs: Tensor) -> Tensor:
        """Call our op."""
        x, f = inputs
        return ops.upfirdn2d(x, f, up=self.up, down=self.down, padding=[*self.padding] * 2, gain=self.gain)

    def plain(self, *inputs: Tensor) -> Tensor:
        """Call the reference in plain torch."""
        x, f = inputs
        up, down = (self.up, self.up), (self.down, self.down)
        return reference.upfirdn2d(x, f, up, down, (*self.padding, *self.padding), False, self.gain)

    def moved(self, item: int) -> dict[Pass, int]:
        """x, f -> y and its transpose; the op is linear: its double backward is the forward of another tensor."""
        both = (math.prod(self.shape) + math.prod(self.output)) * item
        taps = self.taps * (1 if self.separable else self.taps) * _PARAMETER
        return dict.fromkeys(PASSES, both + taps)


def training_cases(size: Size) -> list[Case]:
    """The cases; `small` divides the sides by eight and takes two images."""
    layers = [(1024, 32, 4), (512, 64, 8), (256, 128, 8), (64, 512, 8)]
    shapes = {side: _shape(size, images, channels, side) for side, channels, images in layers}
    return [
        *(Epilogue(f"epilogue-{side}", shape) for side, shape in shapes.items()),
        *(BiasAct(f"bias-act-{side}", shape) for side, shape in shapes.items()),
        BiasAct("bias-act-colours-1024", _shape(size, 4, 3, 1024), act="linear"),
        BiasAct("bias-act-mapping", _shape(size, 8, 512, 64)[:2], clamp=None),
        *_fir_cases(size, "2d"),
        *_fir_cases(size, "separable"),
    ]


def _fir_cases(size: Size, form: Literal["2d", "separable"]) -> list[Case]:
    def fir(name: str, images: int, channels: int, side: int, **settings: Any) -> Fir:
        shape = _shape(size, images, channels, side)
        if name.startswith("after-up"):  # a transposed convolution leaves one row and one column more
            shape = (*shape[:2], shape[2] + 1, shape[3] + 1)
        return Fir(f"fir-{name}-{form}", shape, separable=form == "separable", **settings)

    return [
        fir("after-up-1024", 4, 32, 1024, padding=(1, 1), gain=4.0),
        fir("after-up-256", 8, 128, 256, padding=(1, 1), gain=4.0),
        fir("before-down-1024", 4, 32, 1024, padding=(2, 2)),
        fir("skip-up-1024", 4, 3, 512, up=2, padding=(2, 1), gain=4.0),
        fir("skip-down-1024", 4, 32, 1024, down=2, padding=(1, 1)),
        fir("ada-up-1024", 4, 3, 1024, taps=12, up=2, padding=(6, 5), gain=4.0),
        fir("ada-down-1024", 4, 3, 2048, taps=12, down=2, padding=(5, 5)),
    ]


def _shape(size: Size, images: int, channels: int, side: int) -> tuple[int, int, int, int]:
    return (2, channels, side // 8, side // 8) if size == "small" else (images, channels, side, side)
