"""What the launcher says in the environment: which process this is, how gradients are summed, what cannot be obeyed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hires_gan.errors import Elsewhere, UsageError
from hires_gan.training.levers import Levers
from hires_gan.training.settings import BackendSettings

Environment = Mapping[str, str]
ZeroStage = Literal[1, 2]

_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_LOCAL_RANKS = ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK")
"""As accelerate looks for them: torchrun's names first, then those of MPI's launchers."""

_UNSET = ("", "no", "none", "auto", "false")
_AGENT_PATIENCE = 30.0
"""Seconds between a signal and SIGKILL, in torchrun and what follows it."""


# --- which process this is --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """One of several processes, as the launcher tells it.

    Attributes:
        rank: Its number, from 0.
        size: How many there are.
        local_rank: Its number on its machine, from 0.
        address: Where the first process, or the launcher's agent, listens.
        port: Likewise.
        agent: Whether the launcher's agent listens there, and not the first process.
    """

    rank: int
    size: int
    local_rank: int
    address: str = ""
    port: int = 0
    agent: bool = False

    @property
    def variables(self) -> dict[str, str]:
        """The same under the names that accelerate looks for on every kind of device."""
        return {"RANK": str(self.rank), "WORLD_SIZE": str(self.size), "LOCAL_RANK": str(self.local_rank)}


def find_place(environment: Environment) -> Place | None:
    """Tell which process this is; None for one that nobody started as one of several.

    Raises:
        UsageError: If a launcher was asked for several processes, but each would train alone; or if the variables of
            the launch are incomplete or contradict each other.
        Elsewhere: Likewise, where it is known that another process says so.
    """
    rank, size = _number(environment, _RANKS), _number(environment, _SIZES)
    if (size or 1) == 1 and not rank:
        if size is None:
            _refuse_separate_tasks(environment)
            _refuse_separate_machines(environment)
        return None
    if rank is None or size is None or rank >= size:
        raise UsageError(
            f"the environment has {_shown(environment, _RANKS)} and {_shown(environment, _SIZES)}: several processes "
            "need both, a rank from 0 below the number of them; start with torchrun or accelerate launch, or unset them"
        )
    address, port = environment.get("MASTER_ADDR", ""), _number(environment, ("MASTER_PORT",))
    if not address or port is None:
        missing = "MASTER_PORT" if address else "MASTER_ADDR"
        _refuse_by_first(
            rank,
            f"the environment says that this is one of {size} processes, but {missing} is not set: give it the "
            f"{'port' if address else 'host name'} at which the first one listens, or start with torchrun",
        )
    agent = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return Place(rank, size, _number(environment, _LOCAL_RANKS) or 0, address, port or 0, agent)


def _refuse_by_first(rank: int, message: str) -> None:
    if rank == 0:
        raise UsageError(message)
    raise Elsewhere(usage=True)


def _refuse_separate_tasks(environment: Environment) -> None:
    """Several were asked for, and nothing tells them of each other: each would train a run of its own."""
    tasks, task = _number(environment, ("SLURM_STEP_NUM_TASKS",)), _number(environment, ("SLURM_PROCID",))
    if tasks is not None and tasks > 1:
        _refuse_by_first(
            task or 0,
            f"srun started {tasks} tasks, but RANK and WORLD_SIZE are not set, so that each would train a run of its "
            "own: set them from SLURM_PROCID and SLURM_NTASKS, as launch/slurm.sbatch does, or WORLD_SIZE=1 if that is "
            "what you want",
        )


def _refuse_separate_machines(environment: Environment) -> None:
    """Likewise by accelerate launch on CPUs, which gives the address of the first machine, and no ranks."""
    launched = "ACCELERATE_MIXED_PRECISION" in environment and "LOCAL_RANK" not in environment
    if launched and environment.get("MASTER_ADDR") and environment.get("MASTER_PORT"):
        raise UsageError(
            "accelerate launch was asked for several processes, but on CPUs it starts one on each machine that knows "
            "of no other, so that each would train a run of its own: start with torchrun, or with "
            "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu; if one was meant, unset MASTER_ADDR"
        )


def _number(environment: Environment, names: tuple[str, ...]) -> int | None:
    """The first of these variables that is set."""
    for name in names:
        text = environment.get(name, "").strip()
        if text:
            if not (text.isascii() and text.isdecimal()):
                raise UsageError(f"{name} is {text!r} in the environment: a whole number from 0 on is allowed")
            return int(text)
    return None


def _shown(environment: Environment, names: tuple[str, ...]) -> str:
    return next((f"{name}={environment[name]}" for name in names if environment.get(name)), f"no {names[0]}")


# --- how gradients are summed -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summing:
    """How the gradients of all processes become one.

    Attributes:
        zero_stage: Of DeepSpeed; None for our own data parallel, or one process.
        remark: What the launcher and our configuration see differently, and which of them holds; or nothing.
    """

    zero_stage: ZeroStage | None
    remark: str = ""

    @property
    def way(self) -> str:
        """In words."""
        return f"DeepSpeed ZeRO-{self.zero_stage}" if self.zero_stage else "data parallel"

    def __str__(self) -> str:
        return f"{self.way} ({self.remark})" if self.remark else self.way


def zero_stage(backend: BackendSettings, environment: Environment) -> ZeroStage | None:
    """The stage of DeepSpeed's ZeRO with which a run trains; None without DeepSpeed.

    Args:
        backend: What our configuration says.
        environment: The environment variables, in which accelerate's launcher says what it was asked for.

    Raises:
        UsageError: As `choose_summing`.
    """
    return choose_summing(backend, environment).zero_stage


def choose_summing(backend: BackendSettings, environment: Environment) -> Summing:
    """Settle how gradients are summed: our configuration holds where it says something, else the launcher.

    Raises:
        UsageError: If the two leave a way that does not exist (ZeRO-3), or the configuration contradicts itself.
    """
    asked = asked_stage(environment)
    launcher = "the launcher asks for none" if asked is None else f"the launcher asks for ZeRO-{asked}"
    if backend.name in ("single", "data_parallel"):
        return _without_deepspeed(backend, asked)
    if backend.name == "auto" and asked is None:
        unused = f"backend.zero_stage, {backend.zero_stage}, is for DeepSpeed, and {launcher}"
        return Summing(None, unused if backend.zero_stage else "")
    if backend.zero_stage is not None:
        differs = asked is not None and asked != backend.zero_stage
        return Summing(backend.zero_stage, f"as backend.zero_stage says; {launcher}" if differs else "")
    if backend.name == "auto" and asked == 0:
        return Summing(None, f"{launcher}, which is that; backend.zero_stage=2 divides the optimizers' state")
    if asked in (None, 0):
        return Summing(2, f"as backend.name says; {launcher}" if asked == 0 else "")
    if asked != 3:
        return Summing(1 if asked == 1 else 2)
    raise UsageError(
        "the launch configuration asks for ZeRO-3, which gives weights back before the second backward pass of "
        "a gradient penalty, and fails there: set zero_stage there or backend.zero_stage here to 1 or 2, or "
        "backend.name=data_parallel"
    )


def _without_deepspeed(backend: BackendSettings, asked: int | None) -> Summing:
    if backend.zero_stage is not None:
        raise UsageError(
            f"backend.zero_stage is {backend.zero_stage}, but backend.name is {backend.name}, which has none: set it "
            "to null, or backend.name=deepspeed"
        )
    overridden = f"as backend.name says; the launcher asks for DeepSpeed ZeRO-{asked}"
    return Summing(None, overridden if asked is not None else "")


def asked_stage(environment: Environment) -> int | None:
    """The stage of ZeRO that the launcher asks for, 0 to 3; None if it does not ask for DeepSpeed."""
    if not _is_on(environment, "DEEPSPEED"):
        return None
    stage = _deepspeed_file(environment).get("zero_optimization", {}).get("stage", 0)
    if not _file_name(environment) or stage == "auto":
        stage = environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")  # accelerate's own default
    if str(stage) not in ("0", "1", "2", "3"):
        raise UsageError(f"the launch configuration sets zero_stage to {stage!r}: set it to 1 or 2 there")
    return int(stage)


# --- what cannot be obeyed --------------------------------------------------------------------------------------------


def refuse_launch(environment: Environment, stage: ZeroStage | None) -> None:
    """Refuse a launch configuration that asks for what a run does not do.

    Args:
        environment: The environment variables.
        stage: Of ZeRO, with which the run trains; None without DeepSpeed.

    Raises:
        UsageError: With what it asks for, why that is not done, and what to set instead.
    """
    for message in _objections(environment, stage):
        raise UsageError(f"the launch configuration {message}")


def refuse_compiled(deepspeed: bool, levers: Levers) -> None:
    """Refuse to compile phases that DeepSpeed runs.

    Args:
        deepspeed: Whether it sums the gradients.
        levers: Of the run.

    Raises:
        UsageError: With what to set instead.
    """
    if deepspeed and levers.compile not in (None, "none"):
        raise UsageError(
            f"levers.compile is {levers.compile}, but gradients are summed by DeepSpeed, whose engine runs the "
            "backward pass by itself: set it to none, or use backend.name=data_parallel"
        )


def _objections(environment: Environment, stage: ZeroStage | None) -> Iterator[str]:
    mixed = environment.get("ACCELERATE_MIXED_PRECISION", "")
    if mixed.lower() not in _UNSET:
        yield (
            f"sets mixed_precision to {mixed}; the networks cast by themselves: set it to 'no' there, and `precision` "
            "in the configuration"
        )
    if _is_on(environment, "FSDP"):
        yield (
            "asks for FSDP, under which accelerate takes one model, and a GAN has two: take use_fsdp out there; "
            "backend.name=deepspeed divides the optimizers' state"
        )
    for other in ("MEGATRON_LM", "PARALLELISM_CONFIG"):
        if _is_on(environment, other):
            yield f"sets use_{other.lower()}, but every process holds whole networks: take it out there"
    dynamo = environment.get("ACCELERATE_DYNAMO_BACKEND", "")
    if dynamo.lower() not in _UNSET:
        yield (
            f"sets dynamo_backend to {dynamo.lower()}; torch.compile does not take modules with a gradient penalty: "
            "set it to 'no' there; levers.compile=main compiles whole phases, penalties included"
        )
    yield from _deepspeed_objections(environment, stage)


def _deepspeed_objections(environment: Environment, stage: ZeroStage | None) -> Iterator[str]:
    """What changes results is refused even where our configuration sets DeepSpeed aside."""
    if not _is_on(environment, "DEEPSPEED"):
        return
    content, name = _deepspeed_file(environment), _file_name(environment)
    for kind in ("fp16", "bf16"):
        if _enabled(content.get(kind)):
            yield (
                f"enables {kind} in {name}; the networks cast by themselves: take it out there, and set `precision` in "
                "the configuration"
            )
    for key, allowed, instead in (
        ("gradient_clipping", 0.0, "no recipe clips gradients"),
        ("gradient_accumulation_steps", 1.0, "batch.per_device divides the batch"),
    ):
        value = content.get(key, environment.get(f"ACCELERATE_{key.upper()}", ""))
        if str(value).lower() not in _UNSET and not _equals(value, allowed):
            yield f"sets {key} to {value}; {instead}: set it to {allowed:g} there, or take it out"
    if stage is not None:
        yield from _unused_parts(environment, content)


def _unused_parts(environment: Environment, content: dict[str, Any]) -> Iterator[str]:
    """What only matters to DeepSpeed itself."""
    for what in ("optimizer", "param"):
        block = content.get("zero_optimization", {}).get(f"offload_{what}") or {}
        device = block.get("device") or environment.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{what.upper()}_DEVICE", "")
        if device.lower() not in _UNSET:
            yield (
                f"sets offload_{what}_device to {device}; a GAN's state fits on the GPU, its activations are what is "
                "large: set it to 'none' there"
            )
    for block in ("optimizer", "scheduler"):
        if block in content:
            yield f"has a block '{block}' in {_file_name(environment)}; the recipe has its own: take it out there"


def remark_on_file(environment: Environment, stage: ZeroStage | None) -> str:
    """What of a DeepSpeed file counts, since most of it does not; nothing if there is none, or if it is not used."""
    name = _file_name(environment) if stage is not None and _is_on(environment, "DEEPSPEED") else ""
    return f"of {name} only the stage of ZeRO is used" if name else ""


def _is_on(environment: Environment, what: str) -> bool:
    return environment.get(f"ACCELERATE_USE_{what}", "").lower() in ("true", "1", "yes", "y", "t", "on")


def wants_cpu(environment: Environment) -> bool:
    """Whether the launcher asks to leave GPUs alone."""
    return _is_on(environment, "CPU")


def _enabled(block: Any) -> bool:
    return isinstance(block, dict) and block.get("enabled", True) is True


def _equals(value: Any, number: float) -> bool:
    try:
        return float(value) == number
    except (TypeError, ValueError):
        return False


def _file_name(environment: Environment) -> str:
    name = environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "")
    return "" if name.lower() in _UNSET else name


def _deepspeed_file(environment: Environment) -> dict[str, Any]:
    """What the DeepSpeed file of the launch says; nothing without one."""
    name = _file_name(environment)
    if not name:
        return {}
    try:
        content = json.loads(Path(name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no JSON"
        raise UsageError(
            f"cannot read {name}, which the launch configuration names as deepspeed_config_file ({reason}): correct "
            "it, or name none there and set zero_stage"
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("zero_optimization", {}), dict):
        raise UsageError(
            f"{name}, the deepspeed_config_file of the launch configuration, is no DeepSpeed configuration"
        )
    return content


# --- how it ends a run ------------------------------------------------------------------------------------------------


def seconds_before_kill(environment: Environment, torch_version: str) -> float | None:
    """How long the launcher waits between a signal and SIGKILL; None if nothing is known to kill.

    Args:
        environment: The environment variables.
        torch_version: The launcher's, which is ours: from 2.13 on it can be told otherwise.
    """
    if "TORCHELASTIC_RUN_ID" not in environment:
        return None
    major, minor = (int(part) for part in torch_version.split(".")[:2])
    text = environment.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "")
    if (major, minor) < (2, 13) or not text:
        return _AGENT_PATIENCE
    try:
        return float(text)
    except ValueError:
        return _AGENT_PATIENCE
