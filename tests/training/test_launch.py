"""What the launcher's environment means, and what a launch sets for a whole process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hires_gan.errors import Elsewhere, UsageError
from hires_gan.training import launch
from hires_gan.training.launch import choose_float32, join_launch, warn_of_kill
from hires_gan.training.launcher import (
    Place,
    asked_stage,
    choose_summing,
    find_place,
    refuse_launch,
    remark_on_file,
    zero_stage,
)
from hires_gan.training.settings import BackendSettings

DEEPSPEED = {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_DEEPSPEED": "true"}
MASTER = {"MASTER_ADDR": "first", "MASTER_PORT": "29500"}


@pytest.mark.usefixtures("as_it_was")
@pytest.mark.parametrize("performance", ["fast", "reference"])
@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32", "fp64"])
def test_float32_rounds_to_tf32_only_in_fast_half_precision(precision, performance):
    choose_float32(precision, performance)
    rounds = performance == "fast" and precision in ("bf16", "fp16")
    assert torch.backends.cudnn.allow_tf32 == rounds
    assert torch.backends.cuda.matmul.allow_tf32 == rounds
    assert torch.backends.cudnn.benchmark


# --- which process this is --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, None),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", **MASTER}, None),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", **MASTER}, Place(3, 8, 1, "first", 29500)),
        ({"RANK": "3", "WORLD_SIZE": "8", **MASTER}, Place(3, 8, 0, "first", 29500)),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "TORCHELASTIC_USE_AGENT_STORE": "True", **MASTER},
            Place(0, 2, 0, "first", 29500, agent=True),
        ),
        ({"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", **MASTER}, Place(1, 2, 1, "first", 29500)),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", **MASTER}, Place(1, 2, 0, "first", 29500)),
        (MASTER, None),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, None),
        ({"ACCELERATE_MIXED_PRECISION": "no", "RANK": "0", "WORLD_SIZE": "1", **MASTER}, None),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "WORLD_SIZE": "1"}, None),  # meant to be runs of their own
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, None),  # in a batch script, outside of srun: one process
        (
            {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "RANK": "1", "WORLD_SIZE": "2", **MASTER},
            Place(1, 2, 0, "first", 29500),
        ),
    ],
)
def test_a_process_finds_its_place(environment: dict[str, str], place: Place | None) -> None:
    assert find_place(environment) == place


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"WORLD_SIZE": "2", **MASTER}, ["no RANK", "WORLD_SIZE=2", "torchrun"]),
        ({"RANK": "1", **MASTER}, ["RANK=1", "no WORLD_SIZE"]),
        ({"RANK": "2", "WORLD_SIZE": "2", **MASTER}, ["RANK=2", "WORLD_SIZE=2", "below"]),
        ({"RANK": "one", "WORLD_SIZE": "2", **MASTER}, ["RANK is 'one'", "whole number"]),
        ({"RANK": "0", "WORLD_SIZE": "2"}, ["one of 2 processes", "MASTER_ADDR is not set"]),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "first"}, ["MASTER_PORT is not set"]),
        ({"ACCELERATE_MIXED_PRECISION": "no", **MASTER}, ["run of its own", "torchrun", "--multi_gpu"]),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"}, ["srun started 4 tasks", "launch/slurm.sbatch"]),
    ],
)
def test_an_environment_that_would_train_several_runs_is_refused(environment: dict[str, str], words: list[str]) -> None:
    with pytest.raises(UsageError) as refused:
        find_place(environment)
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize(
    "environment", [{"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3"}, {"RANK": "1", "WORLD_SIZE": "2"}]
)
def test_only_the_first_of_several_refuses_aloud(environment: dict[str, str]) -> None:
    with pytest.raises(Elsewhere):
        find_place(environment)


# --- how gradients are summed -----------------------------------------------------------------------------------------


def asking(stage: int | None) -> dict[str, str]:
    """The environment of a launcher that asks for this stage of ZeRO."""
    return {} if stage is None else DEEPSPEED | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage)}


@pytest.mark.parametrize(
    ("name", "own", "launcher", "stage", "remark"),
    [
        ("auto", None, None, None, ""),
        ("auto", None, 0, None, "asks for ZeRO-0"),
        ("auto", None, 1, 1, ""),
        ("auto", None, 2, 2, ""),
        ("auto", 1, None, None, "backend.zero_stage, 1, is for DeepSpeed"),
        ("auto", 1, 0, 1, "asks for ZeRO-0"),
        ("auto", 1, 1, 1, ""),
        ("auto", 1, 2, 1, "asks for ZeRO-2"),
        ("auto", 2, 3, 2, "asks for ZeRO-3"),
        ("deepspeed", None, None, 2, ""),
        ("deepspeed", None, 0, 2, "asks for ZeRO-0"),
        ("deepspeed", None, 1, 1, ""),
        ("deepspeed", 1, None, 1, ""),
        ("deepspeed", 1, 2, 1, "asks for ZeRO-2"),
        ("data_parallel", None, None, None, ""),
        ("data_parallel", None, 2, None, "asks for DeepSpeed ZeRO-2"),
        ("data_parallel", None, 3, None, "asks for DeepSpeed ZeRO-3"),
        ("single", None, 1, None, "asks for DeepSpeed ZeRO-1"),
    ],
)
def test_our_configuration_holds_and_a_difference_is_said(
    name: Any, own: Any, launcher: int | None, stage: int | None, remark: str
) -> None:
    backend = BackendSettings(name=name, zero_stage=own)
    summing = choose_summing(backend, asking(launcher))
    assert summing.zero_stage == stage == zero_stage(backend, asking(launcher))
    assert remark in summing.remark
    assert bool(summing.remark) == bool(remark)


@pytest.mark.parametrize(
    ("backend", "launcher", "words"),
    [
        ({}, 3, ["ZeRO-3", "second backward pass", "backend.zero_stage", "backend.name=data_parallel"]),
        ({"name": "deepspeed"}, 3, ["ZeRO-3"]),
        (
            {"name": "data_parallel", "zero_stage": 1},
            None,
            ["backend.zero_stage is 1", "backend.name is data_parallel"],
        ),
        ({"name": "single", "zero_stage": 2}, 2, ["backend.zero_stage is 2", "backend.name is single"]),
    ],
)
def test_what_cannot_sum_is_refused(backend: dict[str, Any], launcher: int | None, words: list[str]) -> None:
    with pytest.raises(UsageError) as refused:
        zero_stage(BackendSettings(**backend), asking(launcher))
    for word in words:
        assert word in str(refused.value)


def with_file(folder: Path, content: Any, **more: str) -> dict[str, str]:
    path = folder / "ds.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return DEEPSPEED | {"ACCELERATE_DEEPSPEED_CONFIG_FILE": str(path)} | more


@pytest.mark.parametrize(
    ("content", "stage"),
    [
        ({"zero_optimization": {"stage": 1}}, 1),
        ({"zero_optimization": {"stage": "auto"}}, 2),
        ({"zero_optimization": {}}, 0),
        ({}, 0),
        ({"zero_optimization": {"stage": 3}}, 3),
    ],
)
def test_a_deepspeed_file_says_the_stage(tmp_path: Path, content: Any, stage: int) -> None:
    environment = with_file(tmp_path, content)
    assert asked_stage(environment) == stage
    assert "ds.json only the stage" in remark_on_file(environment, 1)
    assert remark_on_file(environment, None) == ""


def test_accelerate_divides_by_stage_2_if_nothing_says_otherwise() -> None:
    assert asked_stage(DEEPSPEED) == 2
    assert asked_stage({"ACCELERATE_USE_DEEPSPEED": "false"}) is None


@pytest.mark.parametrize("content", ["{", "[1]", '{"zero_optimization": 2}', '{"zero_optimization": {"stage": 7}}'])
def test_a_deepspeed_file_that_says_nothing_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(UsageError, match=r"ds\.json|zero_stage to 7"):
        asked_stage(with_file(tmp_path, content))


def test_a_deepspeed_file_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot read nowhere.json"):
        asked_stage(DEEPSPEED | {"ACCELERATE_DEEPSPEED_CONFIG_FILE": "nowhere.json"})


# --- what cannot be obeyed --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, ["mixed_precision to bf16", "`precision`"]),
        ({"ACCELERATE_MIXED_PRECISION": "fp8"}, ["mixed_precision to fp8"]),
        ({"ACCELERATE_USE_FSDP": "true"}, ["FSDP", "one model", "a GAN has two"]),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, ["use_megatron_lm"]),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, ["use_parallelism_config"]),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, ["dynamo_backend to inductor"]),
        (DEEPSPEED | {"ACCELERATE_GRADIENT_CLIPPING": "1.0"}, ["gradient_clipping to 1.0", "set it to 0"]),
        (DEEPSPEED | {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, ["accumulation_steps to 4", "batch.per_device"]),
        (DEEPSPEED | {"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"}, ["offload_optimizer_device to cpu"]),
        (DEEPSPEED | {"ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "nvme"}, ["offload_param_device to nvme"]),
    ],
)
def test_a_launch_configuration_that_is_not_obeyed_is_refused(environment: dict[str, str], words: list[str]) -> None:
    with pytest.raises(UsageError) as refused:
        refuse_launch(environment, 2)
    for word in ["the launch configuration", *words]:
        assert word in str(refused.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"bf16": {"enabled": True}}, "enables bf16"),
        ({"fp16": {"enabled": True}}, "enables fp16"),
        ({"gradient_clipping": 0.5}, "gradient_clipping to 0.5"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps to 2"),
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, "offload_optimizer_device to cpu"),
        ({"optimizer": {"type": "Adam"}}, "'optimizer'"),
        ({"scheduler": {"type": "WarmupLR"}}, "'scheduler'"),
    ],
)
def test_a_deepspeed_file_that_is_not_obeyed_is_refused(tmp_path: Path, content: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        refuse_launch(with_file(tmp_path, content), 2)


@pytest.mark.parametrize("clipping", ["none", "auto", "0.0", "0"])
def test_what_says_nothing_is_taken(tmp_path: Path, clipping: str) -> None:
    refuse_launch(DEEPSPEED | {"ACCELERATE_GRADIENT_CLIPPING": clipping, "ACCELERATE_DYNAMO_BACKEND": "NO"}, 2)
    content = {
        "fp16": {"enabled": "auto"},
        "bf16": {"enabled": False},
        "gradient_clipping": "auto",
        "gradient_accumulation_steps": 1,
        "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "none"}, "offload_param": None},
    }
    refuse_launch(with_file(tmp_path, content), 2)


def test_clipping_is_refused_even_where_deepspeed_is_set_aside_but_offloading_goes_with_it() -> None:
    with pytest.raises(UsageError, match="gradient_clipping"):
        refuse_launch(DEEPSPEED | {"ACCELERATE_GRADIENT_CLIPPING": "1.0"}, None)
    refuse_launch(DEEPSPEED | {"ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu"}, None)


def test_deepspeed_has_no_float64() -> None:
    with pytest.raises(UsageError, match="precision is fp64, but DeepSpeed"):
        join_launch(BackendSettings(name="deepspeed"), "fp64")


def test_deepspeed_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "find_spec", lambda name: None if name == "deepspeed" else True)
    with pytest.raises(UsageError, match=r"deepspeed cannot be found: install hires-gan\[deepspeed\]"):
        join_launch(BackendSettings(name="deepspeed"), "fp32")


def test_one_process_is_refused_where_several_must_be() -> None:
    with pytest.raises(UsageError, match="the launcher started 1 process, and backend.processes is 2"):
        join_launch(BackendSettings(processes=2))


# --- how it ends a run ------------------------------------------------------------------------------------------------

AGENT = {"TORCHELASTIC_RUN_ID": "none"}


@pytest.mark.parametrize(
    ("grace", "environment", "version", "said"),
    [
        (25, AGENT, "2.11.0", ""),
        (28, AGENT, "2.11.0+cpu", ""),
        (29, AGENT, "2.11.0+cpu", "kills its processes 30 seconds after a signal, and backend.grace is 29"),
        (120, {}, "2.11.0", ""),
        (120, AGENT | {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "300"}, "2.11.0", "30 seconds"),
        (120, AGENT | {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "300"}, "2.13.0", ""),
        (25, AGENT | {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "10"}, "2.13.0", "backend.grace to 8 or less"),
    ],
)
def test_a_launcher_that_kills_too_early_is_named(
    grace: float, environment: dict[str, str], version: str, said: str
) -> None:
    warning = warn_of_kill(grace, environment, version)
    assert said in warning
    assert bool(warning) == bool(said)
