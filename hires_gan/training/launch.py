"""What the launcher gave this process: device and place among the others, through accelerate."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import HashStore, Store  # type: ignore[attr-defined]

from hires_gan import __version__
from hires_gan.errors import Failure, UsageError
from hires_gan.ops.selection import choose, explain
from hires_gan.progress import console, say
from hires_gan.training.greeting import Card, greet
from hires_gan.training.launcher import (
    Place,
    Summing,
    choose_summing,
    find_place,
    refuse_compiled,
    refuse_launch,
    remark_on_file,
    seconds_before_kill,
    wants_cpu,
)
from hires_gan.training.levers import AS_THE_DIAL_SAYS, Levers, allows_tf32, in_words, without_effect
from hires_gan.training.settings import BackendSettings, Performance, Plan, Precision
from hires_gan.training.world import World, join

DTYPES: dict[Precision, torch.dtype] = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp64": torch.float64,
}

_MARGIN = 2.0
"""Seconds that a launcher should wait longer than `backend.grace`: its other processes have to end too."""


def join_launch(
    backend: BackendSettings,
    precision: Precision | None = None,
    trains: bool = True,
    levers: Levers = AS_THE_DIAL_SAYS,
) -> World:
    """Take device and place among the processes from the launcher, and say which they are.

    Nothing that can hang comes before all processes have told each other what they are. Only the first one speaks from
    here on.

    Args:
        backend: How many processes there may be, how they sum gradients, how long they wait for each other.
        precision: Of the run, which not every backend has; None: any.
        trains: Whether gradients will be summed, and checkpoints written.
        levers: Of the run: with DeepSpeed, no phase is compiled.

    Raises:
        UsageError: If the launcher asks for what a run does not do, or started another number of processes than the
            configuration allows; if the processes do not fit together; if each would train alone.
        Failure: If there is a GPU driver, but torch sees no GPU, or the processes do not find each other.
        Elsewhere: On all processes but the first, which has said why.
    """
    place = find_place(os.environ)
    console.quiet = place is not None and place.rank > 0
    kind = "cuda" if torch.cuda.is_available() and not wants_cpu(os.environ) else "cpu"
    summing, refusal = _considered(backend, precision, levers, 1 if place is None else place.size)
    if place is None and refusal is not None:
        raise refusal
    _prepare_accelerate(kind, summing, place)
    store: Store | None = HashStore() if summing.zero_stage is not None else None
    if place is not None:
        store = greet(place, _own_card(kind, place, summing, refusal), backend.timeout)
    world = _formed(kind, backend.timeout, place or Place(0, 1, 0), store)
    if trains:
        _introduce(world, summing, backend)
    else:
        say(f"computing on {_place(world)}")
    return world


def _considered(
    backend: BackendSettings, precision: Precision | None, levers: Levers, size: int
) -> tuple[Summing, Failure | None]:
    """How gradients are summed, and why this process cannot train, if so: the first one tells, for all."""
    summing = Summing(None)
    try:
        summing = choose_summing(backend, os.environ)
        refuse_launch(os.environ, summing.zero_stage)
        _check_processes(size, backend)
        refuse_compiled(summing.zero_stage is not None, levers)
        _check_deepspeed(summing, precision)
        _check_driver()
    except Failure as error:
        return summing, error
    return summing, None


def _prepare_accelerate(kind: str, summing: Summing, place: Place | None) -> None:
    """Let accelerate read in the environment what was settled, where it would see it otherwise."""
    if summing.zero_stage is None:
        os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
    elif kind == "cpu":
        # With it, accelerate takes processes on a CPU for anything but DeepSpeed's.
        os.environ.pop("ACCELERATE_USE_CPU", None)
    if place is not None:
        os.environ.update(place.variables)
    elif summing.zero_stage is not None:
        os.environ.update(Place(0, 1, 0).variables)


def _formed(kind: str, timeout: float, place: Place, store: Store | None) -> World:
    """Form the process group, with which accelerate then goes on.

    It has a store of its own: launchers keep theirs over restarts, with the addresses of processes that have ended, at
    which gloo would look for those of today. Without a store, one process alone needs no group.
    """
    span = timedelta(seconds=timeout)
    group: dict[str, Any] = {"store": store, "rank": place.rank, "world_size": place.size}
    from accelerate import PartialState

    try:
        if store is not None and not dist.is_initialized():
            dist.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=span, **group)
        return join(PartialState(cpu=kind == "cpu", timeout=span).device, timeout)
    except (RuntimeError, ValueError) as error:  # torch's errors of sockets, stores and process groups
        console.quiet = False
        raise Failure(
            f"rank {place.rank} of {place.size} cannot join ({str(error).splitlines()[0]}): look at the network "
            "between the machines; GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the interface to use"
        ) from error


def _own_card(kind: str, place: Place, summing: Summing, refusal: Failure | None) -> Card:
    packages = ["torch", "accelerate", *(["deepspeed"] if summing.zero_stage and find_spec("deepspeed") else [])]
    card = Card(
        host=socket.gethostname(),
        local_rank=place.local_rank,
        size=place.size,
        device=kind,
        summing=summing.way,
        versions={"hires-gan": __version__} | {name: version(name) for name in packages},
        refusal=None if refusal is None else str(refusal),
        usage=isinstance(refusal, UsageError),
    )
    if kind == "cpu":
        return card
    gpus = torch.cuda.device_count()
    index = place.local_rank % gpus  # as accelerate chooses: a task may see its own GPU alone, as number 0
    return replace(card, gpus=gpus, gpu=str(torch.cuda.get_device_properties(index).uuid))


def _introduce(world: World, summing: Summing, backend: BackendSettings) -> None:
    """Say what the run trains on and how, and what the launcher will do to it."""
    say(f"training on {_place(world)}")
    if not world.alone or str(summing) != Summing(None).way:
        say(f"gradients are summed by {summing}")
    remark = remark_on_file(os.environ, summing.zero_stage)
    if remark:
        say(remark)
    warning = warn_of_kill(backend.grace, os.environ, torch.__version__)
    if warning:
        say(warning)


def _place(world: World) -> str:
    others = "" if world.alone else f", as the first of {world.size} processes, {world.neighbours} of them here"
    return f"{_described(world.device)}{others}"


def warn_of_kill(grace: float, environment: Mapping[str, str], torch_version: str) -> str:
    """What to say where the launcher kills before a checkpoint may be written; nothing where it does not.

    Args:
        grace: Seconds that a run takes for its last checkpoint, at most.
        environment: The environment variables.
        torch_version: Of torch, and of its launcher.
    """
    wait = seconds_before_kill(environment, torch_version)
    if wait is None or grace <= wait - _MARGIN:
        return ""
    return (
        f"this launcher kills its processes {wait:g} seconds after a signal, and backend.grace is {grace:g}: start "
        f"with srun (launch/slurm.sbatch), or set backend.grace to {max(1, wait - _MARGIN):g} or less"
    )


def _check_processes(found: int, backend: BackendSettings) -> None:
    least, most = backend.allowed
    if least <= found and (most is None or found <= most):
        return
    key = "backend.name is single" if backend.name == "single" else f"backend.processes is {backend.processes}"
    raise UsageError(
        f"the launcher started {found} {'process' if found == 1 else 'processes'}, and {key}: start as many as that "
        "allows (accelerate launch --num_processes N --num_machines M, or torchrun), or change it"
    )


def _check_deepspeed(summing: Summing, precision: Precision | None) -> None:
    if summing.zero_stage is None:
        return
    if precision == "fp64":
        raise UsageError(
            "precision is fp64, but DeepSpeed computes its steps in float32: use backend.name=data_parallel, or fp32"
        )
    # accelerate chooses among the engines of several models through transformers.
    missing = [name for name in ("deepspeed", "transformers") if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"gradients are to be summed by {summing.way}, but {' and '.join(missing)} cannot be found: install "
            "hires-gan[deepspeed], or use backend.name=data_parallel"
        )


def _check_driver() -> None:
    """What the device could have been, and is not, must not go unsaid."""
    asked_for_cpu = wants_cpu(os.environ) or os.environ.get("CUDA_VISIBLE_DEVICES") == ""
    if Path("/dev/nvidiactl").exists() and not torch.cuda.is_available() and not asked_for_cpu:
        raise Failure(
            "this machine has an NVIDIA driver, but torch sees no GPU: `hires-gan doctor` says why; to train on the "
            "CPU all the same, set CUDA_VISIBLE_DEVICES to nothing"
        )


def _described(device: torch.device) -> str:
    """The device for people."""
    if device.type != "cuda":
        threads = torch.get_num_threads()
        return f"the CPU, {threads} thread{'s' if threads > 1 else ''}"
    count = torch.cuda.device_count()
    others = f", 1 of {count} GPUs" if count > 1 else ""
    return f"{torch.cuda.get_device_name(device)} ({device}{others})"


def set_up(plan: Plan, device: torch.device, divided: bool = False) -> None:
    """Let this process compute on its device as a configuration says, and say how.

    Args:
        plan: The configuration.
        device: Of this process.
        divided: Whether DeepSpeed sums the gradients.

    Raises:
        Failure: If the compiled ops are asked for and missing.
    """
    choose_float32(plan.precision, plan.performance, plan.levers)
    remark_on_levers(plan, device, divided)
    if plan.run.deterministic:
        make_deterministic()
    choose(plan.ops.backend, plan.ops.require_native, device)
    say(explain(device))


def choose_float32(
    precision: Precision,
    performance: Performance,
    levers: Levers = AS_THE_DIAL_SAYS,
) -> None:
    """Let float32 be float32, or TF32 where dial and levers say so (`levers.allows_tf32`).

    Without this, cuDNN may compute convolutions in TF32 in any run.
    """
    rounded = allows_tf32(levers, performance, precision)
    torch.backends.cudnn.allow_tf32 = rounded
    torch.backends.cuda.matmul.allow_tf32 = rounded
    torch.backends.cudnn.benchmark = True


def remark_on_levers(plan: Plan, device: torch.device, divided: bool = False) -> None:
    """Say what dial and levers come to on a GPU, and elsewhere which of them move nothing; arguments as of `set_up`."""
    if device.type == "cuda":
        say(in_words(plan.levers, plan.performance, plan.precision, divided))
    elif idle := without_effect(plan.levers, device.type):
        say(idle)


def make_deterministic() -> None:
    """Refuse kernels that do not repeat bit for bit, and let cuDNN not choose by timing."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
