"""`hires-gan export`: the averaged generator for elsewhere, as safetensors with JSON, or as ONNX."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save

from hires_gan import __version__, checkpoint
from hires_gan.errors import UsageError
from hires_gan.inference.files import write_whole
from hires_gan.inference.loading import build, find, find_generator
from hires_gan.inference.onnx_model import LEAST_OPSET, check_request, pieces_of, write_models

Part = Literal["generator", "mapping+synthesis"]

_WEIGHTS = "generator.average"


@dataclass(frozen=True)
class OnnxRequest:
    """How a generator becomes ONNX.

    Attributes:
        batch: Samples at once; None for any number.
        opset: The version of ONNX's operators, 18 or more.
        part: One model, or one for the mapping network and one for the synthesis network.
    """

    batch: int | None = None
    opset: int = LEAST_OPSET
    part: Part = "generator"


def parse_onnx(batch: str | None, opset: int | None, part: Part | None, file_format: str) -> OnnxRequest:
    """What the options of ONNX ask for.

    Raises:
        UsageError: If one is given for another format, or is no number.
    """
    given = {"--batch": batch, "--opset": opset, "--part": part}
    if file_format != "onnx" and any(value is not None for value in given.values()):
        name = next(name for name, value in given.items() if value is not None)
        raise UsageError(f"{name} is given, which is for --format onnx alone; leave it out")
    if batch is not None and batch != "dynamic" and not batch.isdecimal():
        raise UsageError(f"--batch is {batch!r}; a number, or dynamic, is allowed")
    number = None if batch in (None, "dynamic") else int(batch or 0)
    return OnnxRequest(number, LEAST_OPSET if opset is None else opset, part or "generator")


def export_onnx(reference: str, out: Path, request: OnnxRequest) -> list[Path]:
    """Write the averaged generator as ONNX, if onnxruntime computes the same images as torch.

    Args:
        reference: A checkpoint, a run's folder or `models:/NAME/VERSION`.
        out: The folder; made if it is not there.
        request: How.

    Returns:
        `generator.onnx`, or `mapping.onnx` and `synthesis.onnx`.

    Raises:
        UsageError: If there is no such checkpoint, or it or the installed onnx cannot serve the request.
        Failure: If a package is missing, the checkpoint is damaged, or the model cannot be made, differs, or cannot be
            written.
    """
    check_request(request.batch, request.opset)
    saved = find_generator(reference, "for --format onnx")
    network = build(_in_float32(saved))
    pieces = pieces_of(network, request.part == "mapping+synthesis")
    about = {
        "hires_gan": __version__,
        "family": str(saved.state["configuration"]["recipe"]["name"]),
        "resolution": str(saved.state["inference"]["resolution"]),
        "classes": str(saved.state["inference"]["classes"]),
        "nimg": str(saved.nimg),
        "latents": "N(0, 1)",
        "images": "RGB, about [-1, 1]",
    }
    return write_models(network, pieces, out, request.batch, request.opset, about)


def _in_float32(saved: checkpoint.Checkpoint) -> checkpoint.Checkpoint:
    """The checkpoint of a run in float64, as if it were one in float32."""
    return replace(saved, state=saved.state | {"configuration": saved.state["configuration"] | {"precision": "fp32"}})


def export_safetensors(reference: str, out: Path) -> list[Path]:
    """Write the averaged generator's weights, its average of W among them, and what rebuilds it.

    Args:
        reference: A checkpoint, a run's folder or `models:/NAME/VERSION`.
        out: The folder, which `hires_gan.load` takes; made if it is not there.

    Returns:
        `generator.average.safetensors` and `state.json`.

    Raises:
        UsageError: If there is no such checkpoint, or the folder is a run's or a checkpoint.
        Failure: If the checkpoint is damaged, or the folder cannot be written.
    """
    _check_folder(out)
    saved = find(reference)
    build(saved)  # so that nothing is written that cannot be read
    data = save({name: tensor.contiguous() for name, tensor in saved.tensors(_WEIGHTS).items()})
    weights = out / f"{_WEIGHTS}.safetensors"
    files = {weights.name: hashlib.sha256(data).hexdigest()}
    text = json.dumps(_state(saved, files), indent=1, sort_keys=True)
    write_whole(weights, lambda partial: partial.write_bytes(data))
    write_whole(out / checkpoint.STATE, lambda partial: partial.write_text(text, encoding="utf-8"))
    return [weights, out / checkpoint.STATE]


def _check_folder(out: Path) -> None:
    """Refuse to write over a checkpoint, or to let the export stand for a run."""
    if (out / "checkpoints").exists():
        raise UsageError(f"--out is {out}, which is a run's folder; choose another one")
    try:
        before = json.loads((out / checkpoint.STATE).read_text(encoding="utf-8"))
    except OSError:
        return
    except ValueError:
        before = None
    if not isinstance(before, dict) or "exported" not in before:
        raise UsageError(f"--out is {out}, which is a checkpoint; choose another folder")


def _state(saved: checkpoint.Checkpoint, files: dict[str, str]) -> dict[str, Any]:
    """A checkpoint's description without what only training needs."""
    configuration = saved.state["configuration"]
    return {
        "format": checkpoint.FORMAT_VERSION,
        "nimg": saved.nimg,
        "files": files,
        "configuration": {key: configuration[key] for key in ("recipe", "precision")},
        "inference": saved.state["inference"],
        "exported": {"hires-gan": __version__},
        "versions": saved.state.get("versions"),
    }
