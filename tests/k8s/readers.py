"""Who reads an environment variable: a script, our own code, a package that is installed, or a library's bytes."""

from __future__ import annotations

import functools
import mmap
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from manifests import ROOT

SITE = Path(sysconfig.get_path("purelib"))
PACKAGES = (
    "accelerate", "aiobotocore", "botocore", "deepspeed", "fsspec", "gcsfs", "google", "mlflow", "prometheus_client",
    "s3fs", "torch",
)  # fmt: skip
"""Packages of the image that are told something by variables."""
LIBRARIES = ("nvidia/nccl/lib/libnccl.so.2", "torch/lib/libtorch_cpu.so", "torch/lib/libtorch_cuda.so")
COMPILED = ("NCCL_", "GLOO_")
"""Names that only libraries read; Python's code lists some that nobody reads any more."""
MIXED = ("TORCH_", "PYTORCH_", "CUDA_")
"""Names that libraries read too."""
STANDARD = {
    "HOME": "everything that looks for a user's folder",
    "TMPDIR": "everything that needs a temporary file",
    "XDG_CACHE_HOME": "everything that keeps a cache",
    "TZ": "the C library",
    "LANG": "the C library",
    "PYTHONUNBUFFERED": "Python",
    "PYTHONFAULTHANDLER": "Python",
    "OMP_NUM_THREADS": "OpenMP",
    "NVIDIA_VISIBLE_DEVICES": "NVIDIA's container runtime",
    "NVIDIA_DRIVER_CAPABILITIES": "NVIDIA's container runtime",
}
IMAGES = {
    "postgres": {"POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_DB", "POSTGRES_INITDB_ARGS", "PGDATA", "PGPORT"},
}
"""What images of others read, from their documentation: the tag's name, and variables of the program in it."""


@functools.cache
def reader(name: str, image: str) -> str | None:
    """Who reads a variable in a container; None if nobody is known to.

    Args:
        name: The variable's.
        image: The container's, with its tag.
    """
    other = image.split("/")[-1].split(":")[0]
    if other in IMAGES:
        return f"the image {other}" if name in IMAGES[other] else None
    return STANDARD.get(name) or next(_found(name), None)


def _found(name: str) -> Iterator[str]:
    word = re.compile(rf"(?<!\w){re.escape(name)}(?!\w)")
    for path in sorted(ROOT.glob("launch/*.sh")):
        code = re.sub(r"^\s*#.*$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        if word.search(code):
            yield path.relative_to(ROOT).as_posix()
    if name.startswith(COMPILED + MIXED):
        yield from (library for library in LIBRARIES if _in_library(library, name.encode()))
    if not (name.startswith(COMPILED) and (SITE / LIBRARIES[0]).is_file()):
        yield from filter(None, [_in_packages(name)])


def _in_packages(name: str) -> str | None:
    """A file of Python with that name as a text of its own."""
    grep = shutil.which("grep")
    assert grep, "grep is not on the PATH"
    folders = [str(ROOT / "hires_gan"), *(str(SITE / name) for name in PACKAGES if (SITE / name).is_dir())]
    pattern = f"[\"'](mlflow\\.)?{name}[\"']"
    done = subprocess.run(
        [grep, "-rlE", "-m1", "--include=*.py", pattern, *folders],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    return next(iter(done.stdout.splitlines()), None)


def _in_library(library: str, name: bytes) -> bool:
    """Whether a string of its own in a library is that name."""
    if not (SITE / library).is_file():
        return False
    with (SITE / library).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        at = content.find(name + b"\0")
        while at > 0 and re.fullmatch(rb"\w", content[at - 1 : at]):
            at = content.find(name + b"\0", at + 1)
        return at > 0
