"""The activations that `bias_act` knows."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Activation:
    """What an activation is without being told more.

    Attributes:
        alpha: The default of `alpha`: lrelu's slope below zero; the others have none.
        gain: The default of `gain`, which keeps the variance of a layer's output near that of its input.
        piecewise: Whether it is linear on both sides of zero, so that its second derivative is zero.
    """

    alpha: float
    gain: float
    piecewise: bool


ACTIVATIONS = {
    "linear": Activation(0.0, 1.0, True),
    "relu": Activation(0.0, math.sqrt(2.0), True),
    "lrelu": Activation(0.2, math.sqrt(2.0), True),
    "tanh": Activation(0.0, 1.0, False),
    "sigmoid": Activation(0.0, 1.0, False),
    "elu": Activation(0.0, 1.0, False),
    "selu": Activation(0.0, 1.0, False),
    "softplus": Activation(0.0, 1.0, False),
    "swish": Activation(0.0, math.sqrt(2.0), False),
}
