"""Export: safetensors that load again, ONNX that onnxruntime computes as torch does."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import hires_gan
from hires_gan import checkpoint
from hires_gan.cli import app
from hires_gan.errors import Failure, UsageError
from hires_gan.inference import onnx_model
from hires_gan.inference.export import OnnxRequest, export_onnx, export_safetensors, parse_onnx
from hires_gan.networks import progressive, stylegan, stylegan2
from hires_gan.networks.growth import Width

RECIPES = {
    "progressive": {"generator": {"latent_size": 8, "fmap_base": 64, "fmap_max": 8}},
    "stylegan": {"generator": {"latent_size": 8, "w_size": 6, "mapping_layers": 2, "fmap_base": 64, "fmap_max": 8}},
    "stylegan2": {"generator": {"latent_size": 8, "w_size": 6, "mapping_layers": 2, "fmap_base": 128, "fmap_max": 8}},
}


def network_of(family: str, classes: int, resolution: int) -> torch.nn.Module:
    if family == "progressive":
        return progressive.Generator(resolution, 8, classes, Width(64, 8))
    module = stylegan if family == "stylegan" else stylegan2
    return module.Generator(resolution, 8, 6, classes, 2, Width(64, 8))


@pytest.fixture
def make_checkpoint(tmp_path):
    """A checkpoint of a family with random weights, also where training starts with zeros."""

    def make(family: str, classes: int = 0, alpha: float = 1.0, precision: str = "fp32") -> checkpoint.Checkpoint:
        torch.manual_seed(0)
        network = network_of(family, classes, 8)
        for name, tensor in network.state_dict().items():
            if name == "w_average" or name.endswith(("bias", "noise_strength", "noise_weight")):
                tensor.add_(torch.randn_like(tensor) * 0.3)
        network = network.double() if precision == "fp64" else network
        recipe = RECIPES[family] | {"name": family, "resolution": 8, "labels": classes > 0}
        state = {
            "configuration": {"recipe": recipe, "precision": precision, "run": {"name": "secret"}},
            "inference": {"resolution": 8, "alpha": alpha, "classes": classes},
        }
        parts = {"generator.average": dict(network.state_dict()), "generator.optimizer": {"x": torch.zeros(1)}}
        return checkpoint.write(tmp_path / family / "checkpoints", 100, parts, state)

    return make


@pytest.mark.parametrize("family", list(RECIPES))
@pytest.mark.parametrize("precision", ["fp32", "fp64"])
def test_safetensors_load_to_the_same_generator(make_checkpoint, tmp_path, family, precision):
    saved = make_checkpoint(family, classes=3, alpha=0.25, precision=precision)
    files = export_safetensors(str(saved.folder.parent.parent), tmp_path / "out")
    assert [path.name for path in files] == ["generator.average.safetensors", "state.json"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [path.name for path in files]
    before, after = hires_gan.load(saved.folder), hires_gan.load(tmp_path / "out")
    latents, labels = torch.randn(2, 8, dtype=next(before.parameters()).dtype), torch.tensor([2, 0])
    assert torch.equal(before(latents, labels), after(latents, labels))
    assert load_file(files[0]).keys() == before.state_dict().keys()
    assert "secret" not in files[1].read_text()


def test_equal_weights_are_equal_files_and_an_export_is_replaced(make_checkpoint, tmp_path):
    saved = make_checkpoint("stylegan2")
    first = [path.read_bytes() for path in export_safetensors(str(saved.folder), tmp_path / "out")]
    assert first == [path.read_bytes() for path in export_safetensors(str(saved.folder), tmp_path / "out")]
    again = export_safetensors(str(tmp_path / "out"), tmp_path / "again")
    assert first[0] == again[0].read_bytes()


def test_no_checkpoint_and_no_run_is_written_over(make_checkpoint, tmp_path):
    saved = make_checkpoint("stylegan2")
    state = (saved.folder / "state.json").read_bytes()
    with pytest.raises(UsageError, match="which is a checkpoint; choose another folder"):
        export_safetensors(str(saved.folder), saved.folder)
    with pytest.raises(UsageError, match="which is a run's folder; choose another one"):
        export_safetensors(str(saved.folder), tmp_path / "stylegan2")
    assert (saved.folder / "state.json").read_bytes() == state
    assert not (tmp_path / "stylegan2" / "state.json").exists()


def run_onnx(path, **inputs: torch.Tensor) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_inputs()] == list(inputs)
    return session.run(None, {name: value.numpy() for name, value in inputs.items()})[0]


def close(found: np.ndarray, expected: torch.Tensor) -> bool:
    return found.shape == tuple(expected.shape) and bool(np.abs(found - expected.numpy()).max() < 1e-3)


@pytest.mark.parametrize(
    ("family", "classes", "alpha"),
    [
        ("progressive", 3, 0.25),
        ("stylegan2", 3, 1.0),
        pytest.param("progressive", 0, 1.0, marks=pytest.mark.slow),
        pytest.param("stylegan", 0, 0.25, marks=pytest.mark.slow),
        pytest.param("stylegan", 3, 1.0, marks=pytest.mark.slow),
        pytest.param("stylegan2", 0, 1.0, marks=pytest.mark.slow),
    ],
)
def test_onnx_computes_what_torch_computes_for_any_batch(make_checkpoint, tmp_path, family, classes, alpha):
    import onnx

    saved = make_checkpoint(family, classes, alpha)
    (path,) = export_onnx(str(saved.folder), tmp_path / "out", OnnxRequest())
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["generator.onnx"]
    network = hires_gan.load(saved.folder)
    for count in (1, 2, 5):
        latents = torch.randn(count, 8)
        labels = torch.arange(count) % 3 if classes else None
        inputs = {"latents": latents} | ({"label": labels} if classes else {})
        if family == "progressive":
            assert close(run_onnx(path, **inputs), network(latents, labels))
            continue
        for truncation in (1.0, 0.5, 0.0):
            expected = network(latents, labels, truncation)
            assert close(run_onnx(path, **inputs, truncation=torch.tensor(truncation)), expected)
    model = onnx.load(path)
    assert {node.domain for node in model.graph.node} == {""}
    wide = {onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    assert not {tensor.data_type for tensor in model.graph.initializer} & wide
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "n"
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert about["family"] == family
    assert (about["resolution"], about["classes"], about["nimg"]) == ("8", str(classes), "100")


@pytest.mark.slow
def test_1024x1024_is_exported(tmp_path):
    torch.manual_seed(0)
    network = stylegan2.Generator(1024, 8, 6, 0, 2, Width(1024, 8))
    generator = {"latent_size": 8, "w_size": 6, "mapping_layers": 2, "fmap_base": 2048, "fmap_max": 8}
    state = {
        "configuration": {"recipe": {"name": "stylegan2", "resolution": 1024, "generator": generator}},
        "inference": {"resolution": 1024, "classes": 0},
    }
    state["configuration"]["precision"] = "fp32"
    saved = checkpoint.write(tmp_path / "run", 1, {"generator.average": dict(network.state_dict())}, state)
    (path,) = export_onnx(str(saved.folder), tmp_path / "out", OnnxRequest())
    latents = torch.randn(1, 8)
    with torch.no_grad():
        expected = network(latents, truncation=0.7)
    assert close(run_onnx(path, latents=latents, truncation=torch.tensor(0.7)), expected)


def test_a_fixed_batch_two_models_and_another_opset(make_checkpoint, tmp_path):
    import onnx

    saved = make_checkpoint("stylegan2", classes=3)
    request = OnnxRequest(batch=2, opset=20, part="mapping+synthesis")
    mapping, synthesis = export_onnx(str(saved.folder), tmp_path / "out", request)
    assert (mapping.name, synthesis.name) == ("mapping.onnx", "synthesis.onnx")
    latents, labels, truncation = torch.randn(2, 8), torch.tensor([1, 2]), torch.tensor(0.7)
    ws = run_onnx(mapping, latents=latents, label=labels, truncation=truncation)
    network = hires_gan.load(saved.folder)
    assert close(ws, network.truncate(network.styles(latents, labels), 0.7))
    mixed = torch.from_numpy(ws).clone()
    mixed[0, 2:] = mixed[1, 2:]
    assert close(run_onnx(synthesis, ws=mixed), network.synthesis(mixed))
    model = onnx.load(synthesis)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    assert [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [2, network.num_ws, 6]
    assert [d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim] == [2, 3, 8, 8]


@pytest.mark.slow
def test_a_double_precision_checkpoint_becomes_float32(make_checkpoint, tmp_path):
    saved = make_checkpoint("progressive", precision="fp64")
    (path,) = export_onnx(str(saved.folder), tmp_path / "out", OnnxRequest(batch=1))
    latents = torch.randn(1, 8)
    found = run_onnx(path, latents=latents)
    assert found.dtype == np.float32
    assert close(found, hires_gan.load(saved.folder)(latents.double()))


def test_the_same_checkpoint_gives_the_same_file_without_paths_of_this_machine(make_checkpoint, tmp_path):
    saved = make_checkpoint("progressive")
    first, second = (export_onnx(str(saved.folder), tmp_path / n, OnnxRequest(batch=1))[0].read_bytes() for n in "ab")
    assert first == second
    assert b"hires_gan/" not in first
    assert b".py" not in first


@pytest.mark.slow
def test_large_weights_lie_beside_the_model(make_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_model, "_MOST_IN_ONE_FILE", 100)
    saved = make_checkpoint("progressive")
    (path,) = export_onnx(str(saved.folder), tmp_path / "out", OnnxRequest(batch=1))
    assert sorted(file.name for file in path.parent.iterdir()) == ["generator.onnx", "generator.onnx.data"]
    latents = torch.randn(1, 8)
    assert close(run_onnx(path, latents=latents), hires_gan.load(saved.folder)(latents))


def test_a_model_that_computes_something_else_is_not_written(make_checkpoint, tmp_path, monkeypatch):
    class Off(onnx_model._Images):
        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            return super().forward(*inputs) + 0.01

    monkeypatch.setattr(onnx_model, "_Images", Off)
    saved = make_checkpoint("progressive")
    with pytest.raises(Failure, match=r"differ from torch's by up to 0\.01.*nothing was written"):
        export_onnx(str(saved.folder), tmp_path / "out", OnnxRequest())
    assert list((tmp_path / "out").iterdir()) == []


def test_without_the_packages_the_remedy_is_said(make_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    saved = make_checkpoint("progressive")
    with pytest.raises(Failure, match=r"onnxruntime is missing: pip install 'hires-gan\[export\]'"):
        export_onnx(str(saved.folder), tmp_path / "out", OnnxRequest())
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_asked_for_is_said(make_checkpoint, tmp_path):
    progress = str(make_checkpoint("progressive").folder)
    with pytest.raises(UsageError, match="mapping\\+synthesis, but the generator has no mapping network"):
        export_onnx(progress, tmp_path / "out", OnnxRequest(part="mapping+synthesis"))
    with pytest.raises(UsageError, match=r"--opset is 17; 18 to \d+ are allowed"):
        export_onnx(progress, tmp_path / "out", OnnxRequest(opset=17))
    with pytest.raises(UsageError, match="--batch is 0; 1 and more"):
        export_onnx(progress, tmp_path / "out", OnnxRequest(batch=0))
    with pytest.raises(UsageError, match="there is no folder"):
        export_safetensors(str(tmp_path / "nothing"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Failure, match="cannot write .*file.*; make room"):
        export_onnx(progress, tmp_path / "file" / "out", OnnxRequest())
    with pytest.raises(Failure, match="cannot write .*file.*; make room"):
        export_safetensors(progress, tmp_path / "file" / "out")


def test_the_options_of_onnx():
    assert parse_onnx(None, None, None, "onnx") == OnnxRequest(None, 18, "generator")
    assert parse_onnx("dynamic", 20, "mapping+synthesis", "onnx") == OnnxRequest(None, 20, "mapping+synthesis")
    assert parse_onnx("4", None, None, "onnx").batch == 4
    with pytest.raises(UsageError, match="--batch is 'many'; a number, or dynamic"):
        parse_onnx("many", None, None, "onnx")
    with pytest.raises(UsageError, match="--opset is given, which is for --format onnx alone"):
        parse_onnx(None, 18, None, "safetensors")


@pytest.mark.slow
def test_the_command_writes_onnx(make_checkpoint, tmp_path):
    run = str(make_checkpoint("stylegan2").folder.parent.parent)
    command = [sys.executable, "-m", "hires_gan", "export", run, "--out", str(tmp_path / "out"), "--format", "onnx"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'out' / 'generator.onnx'}\n"), done.stderr
    assert done.stderr == ""


def test_the_command_writes_safetensors(make_checkpoint, tmp_path):
    run = str(make_checkpoint("stylegan2").folder.parent.parent)
    done = CliRunner().invoke(app, ["export", run, "--out", str(tmp_path / "out"), "--format", "safetensors"])
    assert done.exit_code == 0
    assert done.stdout.split() == [
        str(tmp_path / "out" / f"{n}") for n in ("generator.average.safetensors", "state.json")
    ]
    assert json.loads((tmp_path / "out" / "state.json").read_text())["nimg"] == 100
