"""Whether the installed hires_gan is whole; the first thing that is not ends it with a sentence and exit code 1."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path

import hires_gan
from hires_gan.ops import native
from hires_gan.toolkit import choose_architectures

EXTRAS = {
    "s3": ("s3fs",),
    "gcs": ("gcsfs",),
    "dali": ("nvidia.dali",),
    "deepspeed": ("deepspeed", "transformers"),
    "metrics": ("torchmetrics", "torch_fidelity"),
    "export": ("onnx", "onnxscript", "onnxruntime"),
    "demo": ("skimage",),
    "postgres": ("psycopg",),
}
"""What each extra but dev is imported by."""


def check_package() -> None:
    """The package is the environment's own, compiled to byte code."""
    package = Path(hires_gan.__file__).parent
    if not package.is_relative_to(sys.prefix):
        sys.exit(f"hires_gan was imported from {package}, not from the environment {sys.prefix}")
    missing = [path for path in package.rglob("*.py") if not Path(importlib.util.cache_from_source(path)).is_file()]
    if missing:
        sys.exit(
            f"{len(missing)} modules have no byte code, such as {missing[0]}: install with pip, without --no-compile"
        )


def check_extras() -> None:
    """Every extra but dev can be imported."""
    for extra, modules in EXTRAS.items():
        for module in modules:
            try:
                importlib.import_module(module)
            except ImportError as error:
                sys.exit(f"{module}, of the extra {extra}, cannot be imported: {error}")


def check_ops() -> None:
    """Both libraries load, and the one for CUDA holds code for every GPU that was asked for."""
    for device in native.DEVICES:
        if not native.available(device):
            sys.exit(f"the compiled ops for {device} are not there: {native.why_not(device)}")
        sys.stdout.write(f"compiled ops for {device}: {native.describe(device)}\n")
    record = native.record()
    asked, _ = choose_architectures(os.environ.get("TORCH_CUDA_ARCH_LIST"), set())
    if record is None or sorted(record.architectures) != sorted(asked):
        found = ", ".join(record.architectures) if record else "nothing"
        sys.exit(f"the compiled ops are for {found}, and TORCH_CUDA_ARCH_LIST asks for {', '.join(asked)}")


if __name__ == "__main__":
    check_package()
    check_ops()
    check_extras()
