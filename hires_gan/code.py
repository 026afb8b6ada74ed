"""Which code computes, whatever its version and its commit say."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import hires_gan
from hires_gan.ops import build_record


def code_digest() -> str:
    """Of what computes: the package's Python, and of its ops the sources and what compiled them.

    Not their libraries: nvcc makes another one of the same sources each time.
    """
    folder, digest = Path(hires_gan.__file__).parent, hashlib.sha256()
    for path in sorted(path for path in folder.rglob("[!.]*.py") if path.is_file()):
        code = path.read_bytes()
        digest.update(f"{path.relative_to(folder)} {len(code)}\n".encode() + code)
    if built := build_record.read(folder / "ops"):
        there = {device: library.built for device, library in built.libraries.items()}
        made_of = [built.sources, built.compiler, built.nvcc, built.architectures, there]
        digest.update(json.dumps(made_of).encode())
    return digest.hexdigest()[:16]
