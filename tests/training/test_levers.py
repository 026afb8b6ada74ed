"""The levers of speed: what dial and settings come to, what cannot be together, and a resume with others."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from hires_gan.config import load_configuration, to_yaml
from hires_gan.errors import UsageError
from hires_gan.recipes.families import build_recipe
from hires_gan.recipes.settings import RecipeSettings
from hires_gan.training.backends import Backend
from hires_gan.training.launch import choose_float32, join_launch, remark_on_levers
from hires_gan.training.launcher import refuse_compiled
from hires_gan.training.levers import Levers, Pulled, allows_tf32, pulled, without_effect
from hires_gan.training.resume_rules import refuse_changes
from hires_gan.training.settings import BackendSettings

CONFIG = Path(__file__).resolve().parent.parent.parent / "configs" / "demo.yaml"


@pytest.mark.parametrize(
    ("levers", "performance", "expected"),
    [
        ({}, "fast", Pulled(True, True, "none")),
        ({}, "reference", Pulled(False, False, "none")),
        ({"graphs": False}, "fast", Pulled(False, True, "none")),
        ({"fused": False}, "fast", Pulled(False, False, "none")),
        ({"fused": True}, "reference", Pulled(False, True, "none")),
        ({"graphs": True}, "reference", Pulled(True, True, "none")),
        ({"compile": "main"}, "fast", Pulled(True, True, "main")),
        ({"compile": "all", "graphs": False}, "fast", Pulled(False, True, "all")),
        ({"compile": "none"}, "fast", Pulled(True, True, "none")),
    ],
)
def test_a_lever_that_is_set_holds_and_the_dial_fills_in_the_others(levers, performance, expected):
    assert pulled(Levers(**levers), performance, "cuda") == expected


def test_on_a_cpu_only_compiling_moves_something():
    everything = Levers(graphs=True, fused=True, tf32=True, compile="all")
    assert pulled(everything, "fast", "cpu") == Pulled(False, False, "all")
    assert pulled(Levers(), "fast", "cpu") == pulled(Levers(), "reference", "cpu") == Pulled(False, False, "none")


def test_what_has_no_effect_is_said(capsys):
    levers = Levers(graphs=True, fused=True, compile="main")
    assert without_effect(levers, "cpu") == "without effect on cpu, only on a GPU: levers.graphs, levers.fused"
    assert without_effect(levers, "cuda") == without_effect(Levers(graphs=False, tf32=False), "cpu") == ""
    for found in (levers, Levers()):
        remark_on_levers(load_configuration(CONFIG, []).model_copy(update={"levers": found}), torch.device("cpu"))
    assert capsys.readouterr().err == "without effect on cpu, only on a GPU: levers.graphs, levers.fused\n"


@pytest.mark.parametrize(
    ("levers", "performance", "precision", "divided", "words"),
    [
        ({}, "fast", "bf16", False, "CUDA graphs on; fused optimizers on; TF32 on; compiled phases: none"),
        ({}, "fast", "fp32", False, "CUDA graphs on; fused optimizers on; TF32 off; compiled phases: none"),
        ({}, "reference", "bf16", False, "CUDA graphs off; fused optimizers off; TF32 off; compiled phases: none"),
        (
            {"compile": "all"},
            "fast",
            "bf16",
            False,
            "CUDA graphs on; fused optimizers on; TF32 on; compiled phases: a",
        ),
        ({"graphs": True}, "fast", "bf16", True, "CUDA graphs off with DeepSpeed; fused optimizers on; TF32 on; comp"),
        (
            {"graphs": False},
            "fast",
            "bf16",
            True,
            "CUDA graphs off; fused optimizers on; TF32 on; compiled phases: ",
        ),
        ({"fused": False, "graphs": False}, "fast", "bf16", False, "CUDA graphs off; fused optimizers off; TF32 on; "),
        (
            {"fused": False},
            "fast",
            "bf16",
            False,
            "CUDA graphs off, which need fused optimizers; fused optimizers off; TF32 on; compiled phases: none",
        ),
    ],
)
def test_on_a_gpu_it_is_said_what_dial_and_levers_come_to(levers, performance, precision, divided, words, capsys):
    update = {"levers": Levers(**levers), "performance": performance, "precision": precision}
    remark_on_levers(load_configuration(CONFIG, []).model_copy(update=update), torch.device("cuda"), divided)
    assert capsys.readouterr().err.startswith(f"performance={performance}: {words}")


@pytest.mark.usefixtures("as_it_was")
@pytest.mark.parametrize("performance", ["fast", "reference"])
@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32", "fp64"])
@pytest.mark.parametrize("tf32", [True, False])
def test_tf32_is_as_the_lever_says(precision, performance, tf32):
    assert allows_tf32(Levers(tf32=tf32), performance, precision) == tf32
    choose_float32(precision, performance, Levers(tf32=tf32))
    assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == tf32


@pytest.mark.parametrize(("graphs", "fused"), itertools.product([None, True, False], repeat=2))
def test_graphs_without_fused_optimizers_are_refused(graphs, fused):
    if graphs and fused is False:
        with pytest.raises(ValidationError, match="graphs is true, but fused is false"):
            Levers(graphs=graphs, fused=fused)
    else:
        standing = pulled(Levers(graphs=graphs, fused=fused), "fast", "cuda")
        assert standing.fused or not standing.graphs


def test_compiled_runs_are_not_deterministic_ones():
    with pytest.raises(UsageError, match=r"levers\.compile is main, but run\.deterministic is true"):
        load_configuration(CONFIG, ["levers.compile=main", "run.deterministic=true"])
    load_configuration(CONFIG, ["levers.compile=none", "run.deterministic=true"])


def test_config_show_has_them(tmp_path):
    configuration = load_configuration(CONFIG, ["levers.compile=main", "levers.graphs=false"])
    (tmp_path / "again.yaml").write_text(to_yaml(configuration))
    assert load_configuration(tmp_path / "again.yaml") == configuration
    assert "levers:\n  graphs: false\n  fused: null\n  tf32: null\n  compile: main\n" in to_yaml(configuration)


def test_an_unknown_one_is_named():
    with pytest.raises(UsageError, match=r"levers\.compile"):
        load_configuration(CONFIG, ["levers.compile=everything"])
    with pytest.raises(UsageError, match=r"levers\.graph\b.*levers\.graphs"):
        load_configuration(CONFIG, ["levers.graph=true"])


def test_a_resume_may_pull_others():
    before = load_configuration(CONFIG).model_dump(mode="json")
    after = load_configuration(CONFIG, ["levers.compile=all", "levers.tf32=true"]).model_dump(mode="json")
    refuse_changes(before, after)
    refuse_changes(after, before)
    older = {key: value for key, value in before.items() if key != "levers"}
    refuse_changes(older, after)


@pytest.mark.parametrize("phases", ["main", "all"])
def test_deepspeed_is_refused_before_anything_is_opened(phases):
    with pytest.raises(UsageError, match=rf"levers\.compile is {phases}, but gradients are summed by DeepSpeed"):
        join_launch(BackendSettings(name="deepspeed"), "fp32", levers=Levers(compile=phases))


def test_what_compiles_nothing_goes_with_deepspeed_and_what_compiles_without_it():
    for levers in (Levers(), Levers(compile="none", graphs=False)):
        refuse_compiled(True, levers)
    refuse_compiled(False, Levers(compile="all"))


def test_deepspeed_is_refused_by_name():
    block = TypeAdapter(RecipeSettings).validate_python(
        {"name": "progressive", "resolution": 8, "generator": {"latent_size": 8}}
    )
    recipe = build_recipe(block, 4, torch.float32, 0, None)
    with pytest.raises(UsageError, match=r"levers\.compile is all, but gradients are summed by DeepSpeed"):
        Backend(recipe, torch.device("cpu"), 0, engines=object(), levers=Levers(compile="all"))  # type: ignore[arg-type]
