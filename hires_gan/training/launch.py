"""What the launcher gave this process: device and place among the others, through accelerate."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import torch

from hires_gan.errors import Failure, UsageError
from hires_gan.progress import console, say
from hires_gan.training.settings import BackendSettings, Performance, Precision
from hires_gan.training.world import World, join

DTYPES: dict[Precision, torch.dtype] = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp64": torch.float64,
}


def join_launch(backend: BackendSettings) -> World:
    """Take device and place among the processes from accelerate, and say which they are.

    Only the first process speaks from here on.

    Args:
        backend: How many processes there may be.

    Raises:
        UsageError: If the launcher asks for mixed precision, DeepSpeed or FSDP, or starts another number of processes
            than the configuration allows.
        Failure: If there is a GPU driver, but torch sees no GPU, or the processes do not find each other.
    """
    mixed = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if mixed not in ("no", ""):
        raise UsageError(
            f"the launch configuration sets mixed_precision to {mixed}; the networks cast by themselves: "
            f"set it to 'no' there, and `precision` in the configuration"
        )
    from accelerate import PartialState

    for engine in ("DEEPSPEED", "FSDP"):
        if os.environ.get(f"ACCELERATE_USE_{engine}", "false").lower() == "true":
            raise UsageError(
                f"the launch configuration asks for {engine}, which this version does not use; take it out there"
            )
    cpu = not torch.cuda.is_available()
    try:
        state = PartialState(cpu=cpu, timeout=timedelta(seconds=backend.timeout))
    except (RuntimeError, ValueError) as error:  # torch's errors of sockets, stores and process groups
        raise Failure(
            f"the processes of the launch do not find each other ({str(error).splitlines()[0]}): look at the address "
            "and the port of the first one, and at the network between them"
        ) from error
    world = join(state.device, backend.timeout)
    console.quiet = not world.first
    _check_processes(world.size, backend)
    others = "" if world.alone else f", as the first of {world.size} processes, {world.neighbours} of them here"
    say(f"training on {_described(world.device)}{others}")
    return world


def _check_processes(found: int, backend: BackendSettings) -> None:
    least, most = backend.allowed
    if least <= found and (most is None or found <= most):
        return
    key = "backend.name is single" if backend.name == "single" else f"backend.processes is {backend.processes}"
    raise UsageError(
        f"the launcher started {found} {'process' if found == 1 else 'processes'}, and {key}: start as many as that "
        "allows (accelerate launch --num_processes N --num_machines M, or torchrun), or change it"
    )


def _described(device: torch.device) -> str:
    """The device for people; what it could have been and is not must not go unsaid."""
    if device.type == "cuda":
        count = torch.cuda.device_count()
        others = f", 1 of {count} GPUs" if count > 1 else ""
        return f"{torch.cuda.get_device_name(device)} ({device}{others})"
    if Path("/dev/nvidiactl").exists() and os.environ.get("CUDA_VISIBLE_DEVICES") != "":
        raise Failure(
            "this machine has an NVIDIA driver, but torch sees no GPU: `hires-gan doctor` says why; to train on the "
            "CPU all the same, set CUDA_VISIBLE_DEVICES to nothing"
        )
    return f"the CPU, {torch.get_num_threads()} threads"


def choose_float32(precision: Precision, performance: Performance) -> None:
    """Let float32 be float32, or TF32 where that rounds no more than the run's half precision does anyway.

    TF32 keeps 10 bits of the mantissa, as float16 does, and bfloat16 keeps 7. Without this, cuDNN may compute
    convolutions in TF32 in any run.
    """
    rounded = performance == "fast" and precision in ("bf16", "fp16")
    torch.backends.cudnn.allow_tf32 = rounded
    torch.backends.cuda.matmul.allow_tf32 = rounded
    torch.backends.cudnn.benchmark = True


def make_deterministic() -> None:
    """Refuse kernels that do not repeat bit for bit, and let cuDNN not choose by timing."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
