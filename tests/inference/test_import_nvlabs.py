"""Importing NVlabs' checkpoints: from files of the same layout, which a process of its own writes."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from nvlabs_literal import Literal
from safetensors.torch import load_file
from typer.testing import CliRunner

import hires_gan
from hires_gan import checkpoint
from hires_gan.cli import app
from hires_gan.config import load_configuration
from hires_gan.errors import Failure, UsageError
from hires_gan.inference.export import export_safetensors
from hires_gan.inference.loading import find
from hires_gan.inference.nvlabs import import_nvlabs
from hires_gan.inference.nvlabs_file import ForeignNetwork
from hires_gan.inference.nvlabs_layout import _check_architecture, _check_attributes
from hires_gan.inference.nvlabs_names import discriminator_names, generator_names
from hires_gan.networks.stylegan2 import Discriminator, Generator, Width
from hires_gan.recipes.families import build_recipe
from hires_gan.training.backends import Backend
from hires_gan.training.initial_weights import open_initial, start_from

WRITER = Path(__file__).with_name("nvlabs_writer.py")

GOOD = {
    "plain": {},
    "protocol2": {"protocol": 2},
    "protocol3": {"protocol": 3},
    "labels": {"classes": 3, "mapping_layers": 3, "resolution": 32, "group": 2},
    "orig": {"architecture": "orig", "half": 2},
    "quiet": {"noise": False},
    "average": {"without": ["G", "D"]},
    "extra": {"add": {"G_ema.synthesis.b8.conv0.magnitude_ema": []}},
}
BAD = {
    "activation": {"set": {"G_ema.synthesis.b8.conv0:activation": "relu"}},
    "multiplier": {"set": {"G_ema.mapping.fc1:bias_gain": 0.1}},
    "filter": {"add": {"D.b8.conv1.resample_filter": [4, 4]}},
    "grey": {"img_channels": 1},
    "generator_orig": {"generator_architecture": "orig"},
    "generator_resnet": {"generator_architecture": "resnet"},
    "judge_skip": {"architecture": "skip"},
    "stylegan3": {"add": {"G_ema.synthesis.magnitude_ema": []}, "stylegan3": True},
    "unknown": {"add": {"G_ema.synthesis.b8.attention": [3]}},
    "missing": {"add": {"G.synthesis.b8.conv1.bias": None}},
    "nan": {"add": {"G_ema.synthesis.b8.conv1.bias": "nan"}},
    "no_average": {"without": ["G_ema"]},
}


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("nvlabs")
    jobs = json.dumps(GOOD | BAD)
    done = subprocess.run([sys.executable, WRITER, folder, jobs], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def imported(files, tmp_path):
    """Import one of the files: the checkpoint, what the file holds by its own names, and the lines."""

    def run(name: str):
        result = import_nvlabs(files / f"{name}.pkl", tmp_path / name)
        return result.saved, load_file(files / f"{name}.safetensors"), result.lines

    return run


def names_of(part: str, options: dict):
    o = {"resolution": 16, "mapping_layers": 2, "classes": 0, "architecture": "resnet"} | options
    if part == "discriminator":
        return discriminator_names(o["resolution"], o["architecture"], 8, o["classes"] > 0)
    return generator_names(o["resolution"], o["mapping_layers"], o["classes"] > 0)


@pytest.mark.parametrize("name", ["plain", "protocol2", "protocol3", "labels", "orig", "extra"])
def test_every_tensor_is_taken_as_it_is_or_turned(imported, name):
    saved, theirs, _ = imported(name)
    for part, network in (("generator", "G"), ("generator.average", "G_ema"), ("discriminator", "D")):
        ours = saved.tensors(part)
        names = names_of(part, GOOD[name])
        assert ours.keys() == names.keys()
        for key, origin in names.items():
            stored = theirs[f"{network}.{origin.name}"]
            assert torch.equal(ours[key], stored.flip((2, 3)) if origin.turned else stored), key
        taken = {f"{network}.{origin.name}" for origin in names.values()}
        left = {key for key in theirs if key.startswith(f"{network}.")} - taken
        assert {key.rpartition(".")[2] for key in left} <= {"resample_filter", "magnitude_ema"}
    turned = [key for key, origin in names_of("generator", GOOD[name]).items() if origin.turned]
    assert turned == [f"synthesis.blocks.{r}.layers.0.weight" for r in (8, 16, 32)[: len(turned)]]


@pytest.mark.parametrize("name", ["plain", "labels", "quiet"])
def test_the_generators_images_are_those_of_a_literal_computation(imported, name):
    saved, theirs, _ = imported(name)
    network = hires_gan.load(saved.folder).double()
    options = {"resolution": 16, "classes": 0, "mapping_layers": 2} | GOOD[name]
    latents = torch.randn(3, 6, dtype=torch.float64)
    labels = torch.tensor([2, 0, 1]) if options["classes"] else None
    literal = Literal(theirs, "G_ema")
    for truncation in (1.0, 0.6):
        found = network(latents, labels, truncation).numpy()
        layers, side = options["mapping_layers"], options["resolution"]
        expected = [
            literal.image(z, None if labels is None else labels[i], layers, side, truncation)
            for i, z in enumerate(latents.numpy())
        ]
        assert np.abs(found - expected).max() < 1e-9 * np.abs(expected).max()


def test_a_kernel_that_is_not_turned_gives_another_image(imported):
    saved, theirs, _ = imported("plain")
    network = hires_gan.load(saved.folder).double()
    latent = torch.randn(1, 6, dtype=torch.float64)
    expected = Literal(theirs, "G_ema").image(latent[0].numpy(), None, 2, 16)
    weight = network.synthesis.blocks["8"].layers[0].weight
    weight.copy_(weight.flip((2, 3)))
    assert np.abs(network(latent)[0].numpy() - expected).max() > 1e-2 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["plain", "labels", "orig"])
def test_the_discriminators_scores_are_those_of_a_literal_computation(imported, name):
    saved, theirs, _ = imported(name)
    o = {"resolution": 16, "classes": 0, "group": 4, "architecture": "resnet"} | GOOD[name]
    network = Discriminator(o["resolution"], o["classes"], Width(64, 16), o["group"], o["architecture"])
    checkpoint.load_exactly(network, saved.tensors("discriminator"), "discriminator")
    images = torch.randn(o["group"], 3, o["resolution"], o["resolution"], dtype=torch.float64)
    labels = torch.tensor([2, 1]) if o["classes"] else None
    with torch.no_grad():
        found = network.double()(images, labels).numpy()
    literal = Literal(theirs, "D")
    expected = literal.scores(images.numpy(), labels, o["resolution"], o["architecture"] == "resnet")
    assert np.abs(found - expected).max() < 1e-9 * np.abs(expected).max()


def test_the_settings_are_those_of_the_file(imported):
    state = imported("labels")[0].state
    recipe = state["configuration"]["recipe"]
    assert state["inference"] == {"resolution": 32, "classes": 3}
    assert (recipe["name"], recipe["resolution"], recipe["labels"]) == ("stylegan2", 32, True)
    wanted = {"latent_size": 6, "w_size": 8, "mapping_layers": 3, "fmap_base": 128, "fmap_max": 16}
    assert recipe["generator"].items() >= wanted.items()
    assert recipe["discriminator"].items() >= {"architecture": "resnet", "fmap_max": 16, "group_size": 2}.items()
    orig = imported("orig")[0].state["configuration"]
    assert orig["recipe"]["discriminator"]["architecture"] == "orig"
    assert (orig["precision"], orig["recipe"]["low_precision_resolutions"]) == ("fp16", 2)
    assert not [part for part in state["files"] if "optimizer" in part]


def test_what_was_mapped_and_left_out_is_said(imported):
    saved, theirs, lines = imported("extra")
    values = sum(tensor.numel() for tensor in saved.tensors("generator.average").values())
    filters = sum(key.startswith("G_ema.") and key.endswith("resample_filter") for key in theirs)
    assert lines[0] == (
        f"G_ema -> generator.average: {len(saved.tensors('generator.average'))} tensors, {values:,} values (2 kernels "
        f"turned by half a turn); left out: 1 magnitude_ema, {filters} resample_filter"
    )
    assert "left out: augment_pipe, training_set_kwargs" in lines
    assert any("optimizers' states" in line for line in lines)
    assert saved.state["imported"]["notes"] == lines


def test_a_file_of_the_average_alone(imported):
    saved, _, lines = imported("average")
    assert saved.tensors("generator").keys() == saved.tensors("generator.average").keys()
    assert set(saved.state["files"]) == {"generator.safetensors", "generator.average.safetensors"}
    assert any(line.startswith("G is not in the file") for line in lines)
    assert any(line.startswith("D is not in the file") for line in lines)


def test_the_recipe_is_a_base_for_configurations(imported, tmp_path):
    saved, _, _ = imported("orig")
    config = tmp_path / "config.yaml"
    run = {"name": "on", "total_kimg": 1, "init_from": str(tmp_path / "orig")}
    rest = {"run": run, "data": {"shards": "x"}}
    config.write_text(yaml.safe_dump({"base": "orig/recipe.yaml", **rest}))
    configuration = load_configuration(config)
    assert configuration.recipe.model_dump(mode="json") == saved.state["configuration"]["recipe"]
    assert configuration.precision == "fp16"
    recipe = build_recipe(configuration.recipe, configuration.batch.size, torch.float32, 0, None)
    backend = Backend(recipe, torch.device("cpu"), 0)
    initial = open_initial(configuration, ())
    assert initial is not None
    start_from(initial, backend)
    for part, module in (("generator", recipe.players["generator"]), ("generator.average", backend.average)):
        weights = module.state_dict()
        assert all(torch.equal(weights[name], tensor) for name, tensor in saved.tensors(part).items())


SAYS = {
    "activation": r"G_ema of .* has the activation relu in synthesis\.b8\.conv0; lrelu is what our networks compute",
    "multiplier": r"has the learning rate multiplier 0\.1 in mapping\.fc1; 0\.01 is what",
    "filter": r"D of .* has another filter than \[1, 3, 3, 1\] in b8\.conv1\.resample_filter",
    "grey": r"has 1 channels of the image",
    "generator_orig": r"has the architecture orig in synthesis\.b\d+; a generator that sums the images",
    "generator_resnet": r"has the architecture resnet in synthesis\.b\d+; a generator that sums the images",
    "judge_skip": r"D of .* has the architecture skip in b\d+; a residual or plain discriminator",
    "stylegan3": r"is a generator of StyleGAN3 \(configuration T or R: it has synthesis\.L0_36_512\)",
    "unknown": r"is not a StyleGAN2 that can be built here: synthesis\.b8\.attention is unknown",
    "missing": r"G of .* is not a StyleGAN2 that can be built here: synthesis\.b8\.conv1\.bias is missing",
    "nan": r"has values in synthesis\.b8\.conv1\.bias that are not finite",
    "no_average": r"has no network G_ema; it holds D, G, augment_pipe, training_set_kwargs",
}


@pytest.mark.parametrize("name", list(BAD))
def test_what_our_networks_do_not_compute_is_refused_by_name(files, tmp_path, name):
    with pytest.raises(Failure, match=SAYS[name]):
        import_nvlabs(files / f"{name}.pkl", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_with_checkpoints_is_left_alone(files, imported, tmp_path):
    imported("plain")
    with pytest.raises(UsageError, match="which has a checkpoint already; choose a new folder"):
        import_nvlabs(files / "labels.pkl", tmp_path / "plain")
    assert find(tmp_path / "plain").state["inference"]["classes"] == 0


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "it is empty"),
        (b"<!DOCTYPE html><html>", "begins like a web page"),
        (b"PK\x03\x04rest", "a zip archive, as torch.save writes"),
        (b"\x1f\x8b\x08rest", "compressed with gzip"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of git-lfs"),
        (b"\x89PNG\r\n", "is no pickle; give a .pkl checkpoint"),
        (b"\x80\x04]\x94.", "a pickled list, not a dictionary"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.", "a file of torch.save, not a dictionary"),
    ],
)
def test_other_files_are_told_apart(tmp_path, content, sentence):
    path = tmp_path / "some.pkl"
    path.write_bytes(content)
    with pytest.raises(Failure, match=sentence):
        import_nvlabs(path, tmp_path / "out")


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(UsageError, match="there is no file"):
        import_nvlabs(tmp_path / "nothing.pkl", tmp_path / "out")
    with pytest.raises(Failure, match="cannot read .*: Is a directory"):
        import_nvlabs(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("share", [0.01, 0.3, 0.999])
def test_a_truncated_file_is_said(files, tmp_path, share):
    whole = (files / "plain.pkl").read_bytes()
    path = tmp_path / "part.pkl"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(Failure, match="ends in the middle, at byte .* fetch it again"):
        import_nvlabs(path, tmp_path / "out")


def test_the_command_runs_nothing_of_the_file(files, tmp_path):
    """The text of each module in the files ends the process that runs it; the names of its classes lead nowhere."""
    command = [sys.executable, "-m", "hires_gan", "import-nvlabs", files / "plain.pkl", "--out", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "G_ema -> generator.average" in done.stderr
    assert done.stdout.strip() == str(tmp_path / "out" / "checkpoints" / "000000000000")
    assert isinstance(hires_gan.load(tmp_path / "out"), Generator)
    wrong = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)


def test_what_a_module_says_is_never_shown_at_length(tmp_path):
    """A description that takes for ever to hash or to show is refused like any other."""
    endless: tuple = ()
    for _ in range(100):
        endless = (endless, endless)
    for name in ("architecture", "activation", "img_channels", "num_channels", "bias_gain"):
        state = {name: endless}
        network = ForeignNetwork("G_ema", "Generator", {}, {"": {}, "b4.mbstd.": state})
        with contextlib.suppress(Failure):
            _check_attributes(network)
            _check_architecture(network, {"skip"}, "skip")


def test_an_imported_checkpoint_is_used_like_any_other(imported, tmp_path):
    imported("labels")
    run = str(tmp_path / "labels")
    images = tmp_path / "images"
    arguments = ["--seeds", "0-1", "--class", "2", "--truncation", "0.7", "--device", "cpu", "--out", str(images)]
    done = CliRunner().invoke(app, ["generate", run, *arguments])
    assert done.exit_code == 0, done.output
    assert (images / "seed0000000001.png").is_file()
    export_safetensors(run, tmp_path / "exported")
    latents, labels = torch.randn(1, 6), torch.tensor([1])
    before, after = hires_gan.load(run), hires_gan.load(tmp_path / "exported")
    assert torch.equal(before(latents, labels), after(latents, labels))


@pytest.mark.slow
def test_configuration_f_at_full_size_has_its_parameters_and_fits_in_memory(tmp_path):
    """As in the papers' tables: 30,370,060 parameters of the generator, 29,012,513 of the discriminator."""
    options = {"resolution": 1024, "z_dim": 512, "w_dim": 512, "mapping_layers": 8, "base": 32768, "most": 512}
    subprocess.run([sys.executable, WRITER, tmp_path, json.dumps({"full": options})], check=True)
    script = """
import resource, sys
from pathlib import Path
from hires_gan.inference.nvlabs import import_nvlabs
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
before = peak()
for line in import_nvlabs(Path(sys.argv[1]), Path(sys.argv[2])).lines: print(line)
print(peak() - before)
"""
    command = [sys.executable, "-c", script, tmp_path / "full.pkl", tmp_path / "out"]
    *lines, gib = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    network = hires_gan.load(tmp_path / "out")
    assert sum(parameter.numel() for parameter in network.parameters()) == 30_370_060
    assert any(line.startswith("D -> discriminator: 48 tensors, 29,012,513 values") for line in lines)
    assert float(gib) < 1.5
