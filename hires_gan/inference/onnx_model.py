"""A generator as an ONNX model: plain operators, float32, the constant noise, and checked against torch.

Modulated convolutions go the way that scales activations, whose weights are constants, and the ops are the reference in
plain torch, which exports as ordinary convolutions, sums and products.
"""

from __future__ import annotations

import importlib
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hires_gan.errors import Failure, UsageError
from hires_gan.inference.files import cannot_write, make_folder
from hires_gan.networks.styles import StyleGenerator
from hires_gan.ops import backend
from hires_gan.randomness import Purpose, RandomSource

LEAST_OPSET = 18
TOLERANCE = 1e-3
"""The most by which a value of onnxruntime's may differ from torch's; of the largest value, where that is over 1."""

_MOST_IN_ONE_FILE = 1_900_000_000
"""Bytes of weights: protocol buffers, which ONNX files are, end at 2 GiB."""

_DYNAMIC_TRIALS = (1, 2, 3)
_TRUNCATIONS = (1.0, 0.6)


@dataclass(frozen=True)
class Piece:
    """A part of a generator that becomes a model of its own.

    Attributes:
        name: What it is called, and its file.
        module: From the inputs in their order to the output.
        inputs: Their names: of latents, label, truncation and ws, what it takes.
        output: Its name: images or ws.
    """

    name: str
    module: nn.Module
    inputs: tuple[str, ...]
    output: str


class _Images(nn.Module):
    """Latents, and labels if there are classes, to images."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> Tensor:
        images: Tensor = self.network(*inputs)
        return images


class _Styles(nn.Module):
    """Latents, labels if there are classes, and the truncation, to a truncated style for each layer."""

    def __init__(self, network: StyleGenerator) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> Tensor:
        *latents, truncation = inputs
        ws = self.network.styles(*latents)
        return torch.lerp(self.network.w_average.expand_as(ws), ws, truncation)


class _StyledImages(nn.Module):
    """Latents, labels if there are classes, and the truncation, to images."""

    def __init__(self, network: StyleGenerator) -> None:
        super().__init__()
        self.styles, self.synthesis = _Styles(network), network.synthesis

    def forward(self, *inputs: Tensor) -> Tensor:
        images: Tensor = self.synthesis(self.styles(*inputs))
        return images


class _Synthesis(nn.Module):
    """A style for each layer to images."""

    def __init__(self, network: StyleGenerator) -> None:
        super().__init__()
        self.synthesis = network.synthesis

    def forward(self, *inputs: Tensor) -> Tensor:
        images: Tensor = self.synthesis(*inputs)
        return images


def pieces_of(network: nn.Module, apart: bool) -> list[Piece]:
    """The models that a generator becomes: one, or its mapping and its synthesis.

    Raises:
        UsageError: If it is to be taken apart and has no mapping.
    """
    given = ("latents", "label") if network.classes else ("latents",)
    if not isinstance(network, StyleGenerator):
        if apart:
            raise UsageError("--part is mapping+synthesis, but the generator has no mapping network; leave it out")
        return [Piece("generator", _Images(network), given, "images")]
    if not apart:
        return [Piece("generator", _StyledImages(network), (*given, "truncation"), "images")]
    return [
        Piece("mapping", _Styles(network), (*given, "truncation"), "ws"),
        Piece("synthesis", _Synthesis(network), ("ws",), "images"),
    ]


def check_request(batch: int | None, opset: int) -> None:
    """Make sure that the packages are there and know the opset, before anything is loaded.

    Args:
        batch: Samples at once; None for any number.
        opset: The version of ONNX's operators.

    Raises:
        UsageError: If a number is out of range.
        Failure: If a package is missing.
    """
    newest = int(_package("onnx").defs.onnx_opset_version())
    for name in ("onnxscript", "onnxruntime"):
        _package(name)
    if not LEAST_OPSET <= opset <= newest:
        raise UsageError(f"--opset is {opset}; {LEAST_OPSET} to {newest} are allowed with the installed onnx")
    if batch is not None and batch < 1:
        raise UsageError(f"--batch is {batch}; 1 and more, or dynamic, are allowed")


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Failure(
            f"--format is onnx, for which the package {name} is missing: pip install 'hires-gan[export]'"
        ) from error


def write_models(
    network: nn.Module, pieces: Sequence[Piece], out: Path, batch: int | None, opset: int, about: Mapping[str, str]
) -> list[Path]:
    """Write the models, all of them or none.

    Args:
        network: The generator, float32 on the CPU, in evaluation mode.
        pieces: What becomes of it.
        out: The folder.
        batch: Samples at once; None for any number.
        opset: The version of ONNX's operators.
        about: What the files say of themselves.

    Returns:
        The models; weights of more than 1.9 GB lie beside theirs, in a file of the same name with `.data` behind it.

    Raises:
        Failure: If torch cannot export the generator, onnxruntime cannot run it or gives other values, or the files
            cannot be written.
    """
    partial = out / ".onnx.partial"
    make_folder(out)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for piece in pieces:
            model = _converted(network, piece, batch, opset)
            _save(model, partial / f"{piece.name}.onnx", about)
        _compare(network, pieces, partial, batch)
        for file in sorted(partial.iterdir(), reverse=True):  # a file of weights before the model that names it
            file.replace(out / file.name)
    except OSError as error:
        raise cannot_write(out, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return [out / f"{piece.name}.onnx" for piece in pieces]


def _converted(network: nn.Module, piece: Piece, batch: int | None, opset: int) -> Any:
    """The model as onnx's own object."""
    examples = tuple(_values(network, 2 if batch is None else batch, 1.0)[name] for name in piece.inputs)
    axis = {} if batch else {0: torch.export.Dim("n")}
    shapes = (tuple({} if example.ndim == 0 else axis for example in examples),)
    try:
        with backend("reference"), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations within torch, and names of axes that are equal
            # Strict: the other way of tracing takes a batch's len() for a constant.
            graph = torch.export.export(piece.module.eval(), examples, dynamic_shapes=shapes, strict=True)
            program = torch.onnx.export(
                graph,
                dynamo=True,
                opset_version=opset,
                input_names=list(piece.inputs),
                output_names=[piece.output],
                dynamic_shapes=shapes,
                verbose=False,
            )
    except Exception as error:  # torch's compiler raises many kinds
        raise Failure(f"torch cannot export the {piece.name} to ONNX: {str(error).strip()[:300]}") from error
    assert program is not None
    model = program.model_proto
    found = {entry.domain: entry.version for entry in model.opset_import}.get("")
    if found != opset:
        raise Failure(f"the model came out with the opset {found} in place of {opset}; give --opset {found}")
    return model


def _save(model: Any, path: Path, about: Mapping[str, str]) -> None:
    """Write and check a model, without the places in source files that torch notes in it."""
    onnx = _package("onnx")
    graph = model.graph
    for items in (graph.node, graph.value_info, graph.input, graph.output, graph.initializer):
        for item in items:
            del item.metadata_props[:]
    del graph.metadata_props[:]
    onnx.helper.set_model_props(model, dict(about))
    large = sum(len(tensor.raw_data) for tensor in graph.initializer) > _MOST_IN_ONE_FILE
    aside = {"save_as_external_data": True, "location": f"{path.name}.data"} if large else {}
    onnx.save_model(model, str(path), **aside)
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except onnx.checker.ValidationError as error:
        raise Failure(f"the {path.stem} came out as no valid ONNX model: {str(error)[:300]}") from error


def _compare(network: nn.Module, pieces: Sequence[Piece], folder: Path, batch: int | None) -> None:
    """Run the models one behind the other with onnxruntime, and hold the images against torch's."""
    sessions = [_session(folder / f"{piece.name}.onnx") for piece in pieces]
    truncations = _TRUNCATIONS if isinstance(network, StyleGenerator) else (1.0,)
    for count in (batch,) if batch else _DYNAMIC_TRIALS:
        for truncation in truncations:
            values = _values(network, count, truncation)
            with torch.no_grad():
                expected = _expected(network, values, truncation)
            found = {name: value.numpy() for name, value in values.items() if name != "ws"}
            for piece, session in zip(pieces, sessions, strict=True):
                found[piece.output] = session.run(None, {name: found[name] for name in piece.inputs})[0]
            _check_equal(torch.from_numpy(found["images"]), expected)


def _session(path: Path) -> Any:
    runtime = _package("onnxruntime")
    try:
        return runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own, which have no base class of their own
        raise Failure(f"onnxruntime cannot load the {path.stem}: {str(error)[:300]}; try a lower --opset") from error


def _check_equal(found: Tensor, expected: Tensor) -> None:
    off = (found - expected).abs().max().item() if found.shape == expected.shape else float("inf")
    allowed = TOLERANCE * max(1.0, expected.abs().max().item())
    if not off <= allowed:
        raise Failure(
            f"onnxruntime's images differ from torch's by up to {off:.3g}, and {allowed:.3g} is allowed; nothing was "
            "written: try another --opset, and report this if none helps"
        )


def _values(network: nn.Module, count: int, truncation: float) -> dict[str, Tensor]:
    """Every input that a piece may take, for so many samples."""
    size, classes = int(network.latent_size), int(network.classes)  # type: ignore[arg-type]
    samples = torch.arange(count)
    values = {
        "latents": RandomSource(0).normal(Purpose.LATENT_SAMPLE, samples, (size,)).float(),
        "label": samples % max(1, classes),
        "truncation": torch.tensor(truncation),
    }
    if isinstance(network, StyleGenerator):
        values["ws"] = torch.zeros(count, network.num_ws, network.w_size)
    return values


def _expected(network: nn.Module, values: Mapping[str, Tensor], truncation: float) -> Tensor:
    """What the generator itself gives."""
    inputs = [values["latents"], values["label"] if network.classes else None]
    images: Tensor = network(*inputs, truncation) if isinstance(network, StyleGenerator) else network(*inputs)
    return images
