"""What the launcher gave this process: device and place among the others, through accelerate."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from hires_gan.errors import UsageError
from hires_gan.training.settings import Precision

DTYPES: dict[Precision, torch.dtype] = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp64": torch.float64,
}


@dataclass(frozen=True)
class Launch:
    """Where this process computes."""

    device: torch.device


def join_launch() -> Launch:
    """Take the device from accelerate.

    Raises:
        UsageError: If the launcher asks for mixed precision, or for several processes.
    """
    mixed = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if mixed not in ("no", ""):
        raise UsageError(
            f"the launch configuration sets mixed_precision to {mixed}; the networks cast by themselves: "
            f"set it to 'no' there, and `precision` in the configuration"
        )
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    if state.num_processes != 1:
        raise UsageError(
            f"the launcher started {state.num_processes} processes; this version trains in one: "
            f"use `accelerate launch --num_processes 1 --num_machines 1`"
        )
    return Launch(state.device)


def use_full_float32() -> None:
    """Let float32 be float32: without this, cuDNN may compute convolutions in TF32, with 10 bits of mantissa."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = True


def make_deterministic() -> None:
    """Refuse kernels that do not repeat bit for bit, and let cuDNN not choose by timing."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
