"""The levers of speed: each does one thing, and none changes what is computed but by rounding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

from pydantic import model_validator

from hires_gan.settings import Settings

if TYPE_CHECKING:
    from hires_gan.training.settings import Performance, Precision

Compile = Literal["none", "main", "all"]


class Levers(Settings):
    """What `performance` sets together, one by one; null: as `performance` says."""

    graphs: bool | None = None
    """Record each phase of a step as a CUDA graph; fast: on a GPU. It needs fused optimizers: without them, none."""

    fused: bool | None = None
    """Step all parameters of a player in one kernel; fast: on a GPU. Without it, torch's own default: on a GPU, each
    operation of the step over many parameters at once, on a CPU one parameter after the other."""

    tf32: bool | None = None
    """Let float32 convolutions and products compute in TF32 on a GPU; fast: where the run's precision is bf16 or fp16,
    which round no less."""

    compile: Compile | None = None
    """Compile phases with torch.compile: main, those of every step; all, also those that are due now and then, such as
    R1 and path lengths; null: none, whatever the dial. The first step of a stage takes minutes for it: up to an hour,
    `backend.hang_after` does not count that, but `backend.grace` does, since a signal is obeyed behind it."""

    @model_validator(mode="after")
    def _graphs_need_fused(self) -> Self:
        if self.graphs and self.fused is False:
            raise ValueError("graphs is true, but fused is false: only fused steps can be recorded; change one of them")
        return self


AS_THE_DIAL_SAYS = Levers()
"""None of them set."""


@dataclass(frozen=True)
class Pulled:
    """The levers as they stand on a device.

    Attributes:
        graphs: Whether phases are recorded as CUDA graphs.
        fused: Whether an optimizer's step is one kernel.
        compile: Which phases are compiled.
    """

    graphs: bool
    fused: bool
    compile: Compile

    @property
    def whole(self) -> bool:
        """Whether a phase runs as a whole, so that nothing is sent to other processes while it does."""
        return self.graphs or self.compile != "none"


def pulled(levers: Levers, performance: Performance, device_type: str) -> Pulled:
    """What the dial and the levers come to: a lever that is set holds, the dial fills in the others.

    On anything but a GPU there are no CUDA graphs, and Adam is as it is.
    """
    if device_type != "cuda":
        return Pulled(False, False, levers.compile or "none")
    fast = performance == "fast"
    fused = _or(levers.fused, fast or bool(levers.graphs))
    return Pulled(fused and _or(levers.graphs, fast), fused, levers.compile or "none")


def allows_tf32(levers: Levers, performance: Performance, precision: Precision) -> bool:
    """Whether float32 may compute in TF32, on a GPU.

    It keeps 10 bits of the mantissa, as float16 does, and bfloat16 keeps 7: the dial lets it where the run rounds no
    less.
    """
    return _or(levers.tf32, performance == "fast" and precision in ("bf16", "fp16"))


def in_words(levers: Levers, performance: Performance, precision: Precision, divided: bool) -> str:
    """One sentence on what dial and levers come to on a GPU.

    Args:
        levers: Of the run.
        performance: Its dial.
        precision: Its precision.
        divided: Whether DeepSpeed sums the gradients; what it runs is not recorded.
    """
    standing = pulled(levers, performance, "cuda")
    wanted = performance == "fast" and levers.graphs is None
    lacks = ", which need fused optimizers" if wanted and not standing.fused else ""
    graphs = "off with DeepSpeed" if standing.graphs and divided else f"{_ON[standing.graphs]}{lacks}"
    tf32 = _ON[allows_tf32(levers, performance, precision)]
    return (
        f"performance={performance}: CUDA graphs {graphs}; fused optimizers {_ON[standing.fused]}; TF32 {tf32}; "
        f"compiled phases: {standing.compile}"
    )


_ON = {True: "on", False: "off"}


def without_effect(levers: Levers, device_type: str) -> str:
    """One sentence on levers that are pulled and move nothing on a device; nothing if there are none."""
    idle = [f"levers.{name}" for name in ("graphs", "fused", "tf32") if getattr(levers, name)]
    if device_type == "cuda" or not idle:
        return ""
    return f"without effect on {device_type}, only on a GPU: {', '.join(idle)}"


def _or(value: bool | None, otherwise: bool) -> bool:
    return otherwise if value is None else value
