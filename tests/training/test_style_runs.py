"""Whole runs of the style-based families: exact resume with all their state, and new runs from another's weights."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner
from whole_runs import changed, run, saved

import hires_gan
from hires_gan import checkpoint
from hires_gan.augment.pipe import augment
from hires_gan.cli import app
from hires_gan.config import load_configuration, to_yaml
from hires_gan.data.command import PrepareOptions
from hires_gan.data.prepare import prepare
from hires_gan.errors import UsageError
from hires_gan.recipes import stylegan2
from hires_gan.training.run import train

FINETUNE = Path(__file__).resolve().parent.parent.parent / "configs" / "stylegan2_finetune.yaml"
GEOMETRY = {"xflip", "rotate90", "xint", "scale", "rotate", "aniso", "xfrac"}
BGC = GEOMETRY | {"brightness", "contrast", "lumaflip", "hue", "saturation"}
NOT_BGC = {"bands", "noise", "cutout"}
STYLEGAN2 = {
    "name": "stylegan2",
    "resolution": 16,
    "generator": {"latent_size": 8, "w_size": 8, "mapping_layers": 2, "fmap_base": 64, "fmap_max": 8},
    "discriminator": {"fmap_base": 64, "fmap_max": 8},
    "augment": {"preset": "bgcfnc", "probability": {"kimg": 0.4, "interval": 3, "target": -0.5}},
}
STYLEGAN = {
    "name": "stylegan",
    "resolution": 16,
    "generator": {"latent_size": 8, "w_size": 8, "mapping_layers": 2, "fmap_base": 64, "fmap_max": 8},
    "discriminator": {"fmap_base": 64, "fmap_max": 8},
    "schedule": {"stable_kimg": 0.096, "fade_kimg": 0.096},
}


def style_settings(settings: dict[str, Any], recipe: dict[str, Any], **run: Any) -> dict[str, Any]:
    made = copy.deepcopy(settings) | {"recipe": copy.deepcopy(recipe)}
    made["run"] |= {"name": recipe["name"], "total_kimg": 0.32} | run
    return made


@pytest.mark.parametrize(
    ("recipe", "middle"),
    [
        (STYLEGAN2, 0.144),
        (STYLEGAN2 | {"labels": True}, 0.176),
        (STYLEGAN, 0.144),
        (STYLEGAN | {"labels": True}, 0.192),
    ],
    ids=["stylegan2", "stylegan2 with labels", "stylegan in a fade", "stylegan with labels"],
)
def test_n_and_on_to_2n_is_2n(settings: dict[str, Any], recipe: dict[str, Any], middle: float) -> None:
    """The path length's mean, the mean of W, and the augmentation's probability with its sums come back."""
    whole = style_settings(settings, recipe)
    assert run(whole)
    halves = style_settings(settings, recipe, name="halves", total_kimg=middle)
    assert run(halves)
    assert saved(halves).state["files"] != saved(whole).state["files"]
    assert run(changed(halves, run={"total_kimg": 0.32}))
    assert saved(halves).state["files"] == saved(whole).state["files"]
    assert saved(halves).state["recipe"] == saved(whole).state["recipe"]
    if recipe["name"] == "stylegan2":
        state = saved(whole).state["recipe"]
        assert state["path_mean"] > 0
        assert state["augment"]["p"] > 0


def test_micro_batches_of_whole_groups_give_the_same_run_to_rounding(settings: dict[str, Any]) -> None:
    one = style_settings(settings, STYLEGAN2, total_kimg=0.048) | {"precision": "fp64"}
    other = changed(one, run={"name": "other"}, batch={"per_device": 4}, data={"workers": 2})
    run(one)
    run(other)
    for part in ("generator", "discriminator", "generator.average"):
        ours, theirs = saved(one).tensors(part), saved(other).tensors(part)
        for name, value in ours.items():
            torch.testing.assert_close(value, theirs[name], rtol=0, atol=1e-8, msg=name)


def test_a_trained_generator_is_a_plain_module_with_a_mean_of_w(settings: dict[str, Any]) -> None:
    made = style_settings(settings, STYLEGAN2, total_kimg=0.064)
    run(made)
    network = hires_gan.load(saved(made).folder)
    assert isinstance(network, torch.nn.Module)
    assert network.w_average.abs().max() > 0
    latents = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    images = network(latents)
    assert images.shape == (3, 3, 16, 16)
    alike = network(latents, truncation=0.0)
    torch.testing.assert_close(alike[0], alike[2])
    torch.testing.assert_close(network(latents, truncation=1.0), images)


def test_a_new_run_starts_from_anothers_weights_and_with_fresh_optimizers(
    settings: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    first = style_settings(settings, STYLEGAN2, total_kimg=0.064)
    run(first)
    tuned = style_settings(settings, STYLEGAN2, name="tuned", total_kimg=0.016, init_from=str(saved(first).folder))
    tuned["recipe"]["discriminator"] |= {"freeze": 3}
    tuned["recipe"]["augment"] = {"preset": "bg", "probability": {"initial": 0.3}}
    run(tuned)
    assert "starting from the weights of" in capfd.readouterr().err
    before, after = saved(first).tensors("discriminator"), saved(tuned).tensors("discriminator")
    frozen = [name for name in before if torch.equal(before[name], after[name])]
    assert any(name.startswith("from_rgb.") for name in frozen)
    assert len(frozen) < len(before)
    change = max(float((before[name] - after[name]).abs().max()) for name in before)
    assert 0 < change < 0.05, "one step away from what it started with"
    steps = {float(v) for name, v in saved(tuned).tensors("generator.optimizer").items() if name.endswith(".step")}
    assert steps == {2.0}, "a step and its regularisation; nothing of the first run's"
    # From its own checkpoint it goes on, whatever became of the first run.
    again = changed(tuned, run={"total_kimg": 0.032})
    run(again)
    assert saved(again).nimg == 32


@pytest.fixture
def few_images(tmp_path: Path) -> Path:
    """Eight images of 64x64."""
    generator = np.random.default_rng(0)
    (tmp_path / "few").mkdir()
    for number in range(8):
        pixels = generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "few" / f"{number}.png")
    prepare([str(tmp_path / "few")], tmp_path / "few-shards", PrepareOptions(resolution=64, processes=1))
    return tmp_path / "few-shards"


def trained(overrides: list[str]) -> checkpoint.Checkpoint:
    """The last checkpoint of the shipped configuration of fine-tuning, with overrides."""
    configuration = load_configuration(FINETUNE, overrides)
    assert train(configuration, to_yaml(configuration))
    return saved(configuration.model_dump())


def test_the_shipped_fine_tuning_starts_from_a_run_and_learns_behind_the_frozen_layers(
    few_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file as it is, but for its size: of the discriminator's 13 layers at 64x64, the first 10 are frozen."""
    small = [
        f"run.dir={tmp_path / 'runs'}",
        f"data.shards={few_images}",
        "data.workers=0",
        "recipe.resolution=64",
        "recipe.generator={latent_size: 8, w_size: 8, mapping_layers: 2, fmap_base: 256, fmap_max: 8}",
        "recipe.discriminator.fmap_base=256",
        "recipe.discriminator.fmap_max=8",
        "batch.size=4",
        "precision=fp32",
        "samples.count=4",
        "evaluation={metrics: [], best: null}",
    ]
    of_scratch = ["run.init_from=null", "recipe.augment=null", "run.name=first", "run.total_kimg=0.004"]
    source = trained([*small, *of_scratch])
    seen: list[tuple[float, set[str]]] = []

    def watched(images: Tensor, draws: Any, p: Tensor, settings: Any) -> Tensor:
        changed = augment(images, draws, p, settings)
        assert not torch.equal(changed, images)
        seen.append((float(p), {name for name in BGC | NOT_BGC if settings.strength(name) > 0}))
        return changed

    monkeypatch.setattr(stylegan2, "augment", watched)
    half = ["recipe.augment.probability.initial=0.5"]
    tuned = trained([*small, *half, f"run.init_from={source.folder}", "run.total_kimg=0.02"])
    assert tuned.state["configuration"]["run"]["name"] == "stylegan2-finetune"
    before, after = source.tensors("discriminator"), tuned.tensors("discriminator")
    unchanged = {name for name in before if torch.equal(before[name], after[name])} - {"filter"}
    layers = ("from_rgb.", "blocks.64.", "blocks.32.", "blocks.16.")
    assert unchanged == {name for name in before if name.startswith(layers)}
    assert len(unchanged) == 2 + 3 * 5
    before, after = source.tensors("generator"), tuned.tensors("generator")
    assert not torch.equal(before["synthesis.constant"], after["synthesis.constant"])
    # The whole of one preset, always. With 16 images in an interval and 100 kimg from 0 to 1, p has moved by 0.00016.
    assert {names == BGC for _, names in seen} == {True}
    probabilities = [p for p, _ in seen]
    assert probabilities[0] == 0.5
    assert abs(probabilities[-1] - 0.5) == pytest.approx(16 / 100_000, rel=1e-9)


@pytest.mark.parametrize("recipe", [STYLEGAN, STYLEGAN2], ids=["stylegan", "stylegan2"])
def test_generate_makes_the_class_that_was_asked_for(
    settings: dict[str, Any], recipe: dict[str, Any], tmp_path: Path
) -> None:
    made = style_settings(settings, recipe | {"labels": True}, total_kimg=0.064)
    run(made)

    def images(label: int, folder: str) -> list[np.ndarray[Any, Any]]:
        arguments = ["generate", str(saved(made).folder), "--out", str(tmp_path / folder), "--seeds", "3,5"]
        done = CliRunner().invoke(app, [*arguments, "--class", str(label), "--device", "cpu"])
        assert done.exit_code == 0, done.output
        return [np.asarray(Image.open(tmp_path / folder / f"seed{seed:010d}.png")) for seed in (3, 5)]

    first, second, again = images(0, "first"), images(1, "second"), images(0, "again")
    for one, other, same in zip(first, second, again, strict=True):
        assert not np.array_equal(one, other)
        assert np.array_equal(one, same)
    assert not np.array_equal(first[0], first[1])


def test_weights_of_another_resolution_are_refused(settings: dict[str, Any]) -> None:
    first = style_settings(settings, STYLEGAN2, total_kimg=0.016)
    run(first)
    lower = style_settings(settings, STYLEGAN2, name="lower", init_from=str(saved(first).folder))
    lower["recipe"]["resolution"] = 8
    lower["evaluation"] |= {"metrics": [], "best": None}
    with pytest.raises(UsageError, match=r"recipe\.resolution is 16 there and 8 here\. Set these keys to what"):
        run(lower)
    assert not (Path(first["run"]["dir"]) / "lower").exists()


def test_a_run_of_a_folder_or_of_another_family_s_weights_says_what_differs(settings: dict[str, Any]) -> None:
    first = style_settings(settings, STYLEGAN2, total_kimg=0.016)
    run(first)
    source = str(Path(first["run"]["dir"]) / "stylegan2")
    wider = style_settings(settings, STYLEGAN2, name="wider", init_from=source)
    wider["recipe"]["generator"] |= {"fmap_max": 16}
    with pytest.raises(UsageError, match=r"recipe\.generator\.fmap_max is 8 there and 16 here"):
        run(wider)
    with pytest.raises(UsageError, match=r"recipe\.name is stylegan2 there and stylegan here"):
        run(style_settings(settings, STYLEGAN, name="other", init_from=source))
    with pytest.raises(UsageError, match="there is no folder"):
        run(style_settings(settings, STYLEGAN2, name="nowhere", init_from="/nowhere/at/all"))
    assert not (Path(first["run"]["dir"]) / "wider").exists(), "what cannot begin leaves no folder"


def test_what_is_logged_are_numbers_alone(settings: dict[str, Any]) -> None:
    made = style_settings(settings, STYLEGAN2, total_kimg=0.064)
    run(made)
    from mlflow.tracking import MlflowClient

    folder = saved(made).folder.parent.parent
    client = MlflowClient(f"sqlite:///{folder.parent / 'mlflow.db'}")
    metrics = client.get_run(saved(made).state["mlflow_run_id"]).data.metrics
    assert {"loss/path_length", "loss/r1", "statistics/path_length", "statistics/augment_probability"} <= set(metrics)
    assert not [name for name in metrics if name.startswith("average/")]
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"
    assert load_file(saved(made).folder / "generator.safetensors")["w_average"].shape == (8,)
