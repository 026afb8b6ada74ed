"""Whole runs of MUNIT: exact resume, the same run for any micro-batch, grids, metrics, and data that do not fit."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from domain_runs import MUNIT, pictures, prepared
from mlflow import MlflowClient
from PIL import Image
from typer.testing import CliRunner
from whole_runs import changed, run, saved

import hires_gan
from hires_gan import checkpoint
from hires_gan.cli import app
from hires_gan.data.command import PrepareOptions
from hires_gan.data.prepare import prepare
from hires_gan.errors import Failure, UsageError
from hires_gan.networks.translation import Translator

SIDE = 32


@pytest.fixture(scope="module")
def domains(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """24 images that lean to the left, 18 that lean to the right, in other colours."""
    root = tmp_path_factory.mktemp("domains")
    return {
        "left": str(prepared(root / "left", pictures(24, SIDE, 0))),
        "right": str(prepared(root / "right", pictures(18, SIDE, 1, turned=True))),
    }


@pytest.fixture
def settings(domains: dict[str, str], tmp_path: Path) -> dict[str, Any]:
    """As YAML would give it: 12 steps of 4 images of each domain, every term of the loss in use."""
    return {
        "run": {"name": "munit", "dir": str(tmp_path / "runs"), "total_kimg": 0.048},
        "data": {"domains": dict(domains), "workers": 0, "mirror": True},
        "recipe": copy.deepcopy(MUNIT),
        "batch": {"size": 4, "per_device": 2},
        "precision": "fp32",
        "checkpoint": {"every_kimg": 0.02, "keep": 2},
        "samples": {"every_kimg": 0.048, "count": 3, "styles": 2},
        "ema": {"half_life_batches": 5},
        "evaluation": {"every_kimg": 0.048, "count": 16},
        "tracking": {"every_kimg": 0.016},
    }


GROWING = {
    "schedule": {"start_resolution": 16, "stable_kimg": 0.016, "fade_kimg": 0.016},
    "generator": MUNIT["generator"] | {"content_downs": 2, "most": 16},
    "discriminator": MUNIT["discriminator"] | {"scales": 2},
}


@pytest.mark.parametrize(
    ("recipe", "middle"),
    [({}, 0.024), ({"crop": 24}, 0.02), (GROWING, 0.024), (GROWING, 0.036)],
    ids=["whole images", "crops", "in a fade", "behind the fade"],
)
def test_n_and_on_to_2n_is_2n(settings: dict[str, Any], recipe: dict[str, Any], middle: float) -> None:
    """Spectral vectors, moments of styles, halved learning rates with Adam's moments, and both domains' places."""
    whole = changed(settings, recipe=recipe)
    assert run(whole)
    halves = changed(whole, run={"name": "halves", "total_kimg": middle}, data={"workers": 1})
    assert run(halves)
    assert saved(halves).state["files"] != saved(whole).state["files"]
    assert run(changed(halves, run={"total_kimg": 0.048}))
    assert saved(halves).state["files"] == saved(whole).state["files"]
    assert saved(halves).state["recipe"] == saved(whole).state["recipe"]
    moments = np.array(saved(whole).state["recipe"]["style_moments"]["left"])
    assert moments.shape == (2, 4)
    assert (moments[0] != 0).all(), "they have moved"


def test_micro_batches_give_the_same_run_to_rounding(settings: dict[str, Any]) -> None:
    one = changed(settings, run={"total_kimg": 0.016}) | {"precision": "fp64"}
    other = changed(one, run={"name": "other"}, batch={"per_device": 4})
    run(one)
    run(other)
    for part in ("generator", "discriminator", "generator.average"):
        ours, theirs = saved(one).tensors(part), saved(other).tensors(part)
        for name, value in ours.items():
            torch.testing.assert_close(value, theirs[name], rtol=0, atol=1e-8, msg=name)


def test_grids_and_metrics_of_both_directions_reach_the_run_and_mlflow(settings: dict[str, Any]) -> None:
    assert run(settings)
    folder = Path(settings["run"]["dir"]) / "munit"
    names = sorted(path.name for path in (folder / "samples").glob("*.png"))
    directions = ("left_to_right", "right_to_left")
    assert names == [f"{nimg:012d}_{direction}.png" for nimg in (0, 48) for direction in directions]
    client = MlflowClient(f"sqlite:///{folder.parent / 'mlflow.db'}")
    run_id = saved(settings).state["mlflow_run_id"]
    logged = client.get_run(run_id).data.metrics
    for direction in directions:
        levels = [logged[f"evaluation/swd/{direction}/{level}"] for level in (16, 32)]
        assert logged[f"evaluation/swd/{direction}"] == pytest.approx(sum(levels) / 2)
    mean = sum(logged[f"evaluation/swd/{direction}"] for direction in directions) / 2
    assert logged["evaluation/swd"] == pytest.approx(mean)
    assert logged["schedule/learning_rate_generator"] == pytest.approx(0.0002 * 0.5**2)
    images = {Path(file.path).name.partition("%")[0] for file in client.list_artifacts(run_id, "images")}
    assert any("left_to_right" in name for name in images)


def test_a_grid_shows_fixed_inputs_and_their_translations(settings: dict[str, Any]) -> None:
    """A row for each input: the image as it is in the set, then what the averaged network makes of it, by style."""
    assert run(settings)
    folder = Path(settings["run"]["dir"]) / "munit" / "samples"
    first, last = (np.asarray(Image.open(folder / f"{nimg:012d}_left_to_right.png")) for nimg in (0, 48))
    assert first.shape == (3 * SIDE, 3 * SIDE, 3)
    assert (first[:, :SIDE] == last[:, :SIDE]).all(), "the same inputs at any time"
    assert (first[:, SIDE:] != last[:, SIDE:]).any()
    network = hires_gan.load(folder.parent)
    assert isinstance(network, Translator)
    images = torch.from_numpy(last[SIDE : 2 * SIDE, :SIDE].copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    style = hires_gan.randomness.RandomSource(0).normal(
        hires_gan.randomness.Purpose.LATENT_SAMPLE, torch.tensor([1]), (4,)
    )
    made = (network(images, style, "left", "right") * 127.5 + 127.5).round().clamp(0, 255)[0].permute(1, 2, 0)
    shown = torch.from_numpy(last[SIDE : 2 * SIDE, 2 * SIDE :].copy()).float()
    assert (made - shown).abs().max() <= 1


def test_other_commands_say_what_a_translation_is_not_for(settings: dict[str, Any], tmp_path: Path) -> None:
    settings["evaluation"] |= {"every_kimg": None}
    assert run(changed(settings, run={"total_kimg": 0.004}))
    folder = str(Path(settings["run"]["dir"]) / "munit")
    for arguments in (["generate"], ["export", "--format", "onnx"]):
        result = CliRunner().invoke(app, [arguments[0], folder, "--out", str(tmp_path / "out"), *arguments[1:]])
        assert isinstance(result.exception, UsageError)
        assert "holds a munit model, which translates images" in str(result.exception)
    exported = tmp_path / "exported"
    result = CliRunner().invoke(app, ["export", folder, "--out", str(exported), "--format", "safetensors"])
    assert result.exit_code == 0, result.exception
    again, there = hires_gan.load(exported).state_dict(), hires_gan.load(folder).state_dict()
    assert all((again[name] == there[name]).all() for name in there)


# --- a new run from another's weights ---------------------------------------------------------------------------------


def test_a_run_starts_from_anothers_weights(settings: dict[str, Any]) -> None:
    settings["evaluation"] |= {"every_kimg": None}
    run(changed(settings, run={"total_kimg": 0.004}))
    weights = str(Path(settings["run"]["dir"]) / "munit")
    tuned = changed(settings, run={"name": "tuned", "init_from": weights, "total_kimg": 0.004}, recipe={"crop": 16})
    assert run(tuned)
    with pytest.raises(UsageError, match=r"the domains are left, right there and right, left here: name them in"):
        run(changed(tuned, run={"name": "no"}, data={"domains": dict(reversed(settings["data"]["domains"].items()))}))
    with pytest.raises(UsageError, match=r"recipe.schedule.start_resolution, or .* is 32 there and 16 here"):
        run(changed(tuned, run={"name": "no"}, recipe=GROWING | {"crop": None}))


def test_a_checkpoint_with_one_domain_only_is_named(settings: dict[str, Any]) -> None:
    settings["evaluation"] |= {"every_kimg": None}
    run(changed(settings, run={"total_kimg": 0.004}))
    found = saved(settings)
    cut = {name: value for name, value in found.tensors("generator.average").items() if "right" not in name}
    state = json.loads((found.folder / checkpoint.STATE).read_text())
    rest = {key: value for key, value in state.items() if key not in ("files", "nimg", "format")}
    again = checkpoint.write(found.folder.parent, 8, {"generator.average": cut}, rest)
    with pytest.raises(Failure, match=r"generator_right\..* is missing"):
        hires_gan.load(again.folder)


# --- data that do not fit ---------------------------------------------------------------------------------------------


def test_one_domain_or_three_are_refused(settings: dict[str, Any], domains: dict[str, str], tmp_path: Path) -> None:
    third = str(prepared(tmp_path / "third", pictures(3, SIDE, 2)))
    with pytest.raises(
        UsageError, match=r"recipe munit translates between two domains, but the data have the domains "
    ):
        run(changed(settings, data={"domains": domains | {"third": third}}))
    plain = changed(settings, data={"domains": None, "shards": domains["left"]})
    with pytest.raises(UsageError, match=r"but the data have plain images: name a shard set for each, as data.domains"):
        run(plain)


def test_a_domain_that_is_missing_or_empty_is_named(
    settings: dict[str, Any], domains: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"data\.domains\.right"):
        run(changed(settings, data={"domains": domains | {"right": str(tmp_path / "nowhere")}}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"data\.domains\.right"):
        run(changed(settings, data={"domains": domains | {"right": str(tmp_path / "empty")}}))


def test_a_domain_of_one_image_trains_and_is_mentioned(
    settings: dict[str, Any], domains: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    single = str(prepared(tmp_path / "single", pictures(1, SIDE, 3)))
    assert run(changed(settings, data={"domains": domains | {"right": single}}, run={"total_kimg": 0.008}))
    assert "larger than the data set of 1 images of domain right" in capfd.readouterr().err


def test_domains_of_different_resolutions_meet_at_the_recipes(
    settings: dict[str, Any], domains: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    large = str(prepared(tmp_path / "large", pictures(6, 2 * SIDE, 4)))
    settings["evaluation"] |= {"every_kimg": None}
    assert run(changed(settings, data={"domains": domains | {"right": large}}, run={"total_kimg": 0.008}))
    assert "images of domain right of 64 pixels are reduced to 32" in capfd.readouterr().err
    small = str(prepared(tmp_path / "small", pictures(6, SIDE // 2, 5)))
    with pytest.raises(UsageError, match=r"recipe.resolution is 32, but the images of domain right in .* have 16"):
        run(changed(settings, data={"domains": domains | {"right": small}}, run={"name": "other"}))


@pytest.mark.parametrize("value", [255, 0, 128])
def test_constant_images_leave_every_weight_finite(settings: dict[str, Any], tmp_path: Path, value: int) -> None:
    constant = np.full((4, SIDE, SIDE, 3), value, np.uint8)
    one = str(prepared(tmp_path / "constant", constant))
    data = {"domains": settings["data"]["domains"] | {"left": one}}
    settings["evaluation"] |= {"every_kimg": None}
    assert run(changed(settings, data=data, run={"total_kimg": 0.02}))
    found = saved(settings)
    assert found.state["progress"]["nonfinite"] == 0
    assert all(tensor.isfinite().all() for tensor in found.tensors("generator").values())


def test_a_pair_of_columns_is_two_domains(settings: dict[str, Any], tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number, (a, b) in enumerate(zip(pictures(6, SIDE, 6), pictures(6, SIDE, 7), strict=True)):
        Image.fromarray(a).save(source / f"{number}.a.png")
        Image.fromarray(b).save(source / f"{number}.b.png")
    prepare([str(source)], tmp_path / "pairs", PrepareOptions(resolution=SIDE, columns=("a", "b"), processes=1))
    made = changed(settings, run={"total_kimg": 0.008}, data={"domains": None, "shards": str(tmp_path / "pairs")})
    assert run(made)
    assert saved(made).state["inference"]["domains"] == ["a", "b"]


def test_vgg_that_is_not_at_hand_is_one_sentence(settings: dict[str, Any], tmp_path: Path) -> None:
    recipe = settings["recipe"] | {"vgg": {"weights": str(tmp_path / "vgg.pth")}}
    recipe["loss"] = recipe["loss"] | {"perceptual": 1.0}
    with pytest.raises(UsageError, match=r"vgg\.pth.*recipe\.loss\.perceptual=0"):
        run(settings | {"recipe": recipe})
    assert not (Path(settings["run"]["dir"]) / "munit").exists()
