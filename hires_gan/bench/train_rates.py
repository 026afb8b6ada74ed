"""How fast the device multiplies matrices and copies memory, measured in the same run as what is compared with it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from hires_gan.bench.ops_passes import copies
from hires_gan.bench.timing import Launch, clock_of, warm_up

_SIDES = {"cuda": 8192, "cpu": 1024}
_BUFFER = {"cuda": 2 * 2**30, "cpu": 64 * 2**20}
_CALLS = {"cuda": 4, "cpu": 2}
_ROUNDS = 5


def matrix_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """In which a matrix product is measured: on a CPU float32 stands for the half precisions, too."""
    return torch.float32 if device.type == "cpu" and dtype.itemsize < 4 else dtype


def matrix_side(device: torch.device) -> int:
    """The side of the square matrices."""
    return _SIDES[device.type]


def buffer_bytes(device: torch.device) -> int:
    """The size of the buffer that is copied."""
    return _BUFFER[device.type]


def measure_matrix(dtype: torch.dtype, device: torch.device) -> float:
    """Operations per second of a product of square matrices: the fastest of some rounds."""
    side = matrix_side(device)
    random = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(side, side, generator=random, dtype=torch.float32, device=device) for _ in range(2))
    a, b = a.to(dtype), b.to(dtype)
    c = torch.empty_like(a)

    def ready() -> list[Launch]:
        return [lambda: torch.mm(a, b, out=c)] * _CALLS[device.type]

    warm_up(ready)
    clock = clock_of(device)
    return 2 * side**3 / min(clock.seconds(ready) for _ in range(_ROUNDS))


def measure_copy(device: torch.device) -> float:
    """Bytes per second, read and written together, of a copy: the fastest of some rounds."""
    moved = 2 * buffer_bytes(device)
    ready = copies(moved, 1, device)
    warm_up(ready)
    clock = clock_of(device)
    return moved / min(clock.seconds(ready) for _ in range(_ROUNDS))


@dataclass
class Rates:
    """What a device has shown.

    Attributes:
        device: Which.
        copied: Bytes per second of a copy, read and written together; None until it is measured, on first use.
        measured: Operations per second of a matrix product, by dtype: each is measured on first use.
    """

    device: torch.device
    copied: float | None = None
    measured: dict[torch.dtype, float] = field(default_factory=dict)

    @property
    def copy(self) -> float:
        """Bytes per second, read and written together."""
        if self.copied is None:
            self.copied = measure_copy(self.device)
        return self.copied

    def matrix(self, dtype: torch.dtype) -> float:
        """Operations per second in a dtype."""
        key = matrix_dtype(dtype, self.device)
        if key not in self.measured:
            self.measured[key] = measure_matrix(key, self.device)
        return self.measured[key]
