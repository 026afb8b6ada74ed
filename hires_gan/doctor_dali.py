"""What the doctor finds out about NVIDIA DALI."""

from __future__ import annotations

from importlib import import_module, metadata

from hires_gan.doctor_devices import Finding, gpu_count, importable_torch
from hires_gan.errors import Failure, UsageError

_PACKAGES = ("nvidia-dali-cuda130", "nvidia-dali-cuda120", "nvidia-dali-nightly-cuda130", "nvidia-dali-nightly-cuda120")


def dali() -> Finding:
    """DALI: its version, its CUDA, whether it loads, and whether the driver is new enough for it."""
    found = [f"{name} {version}" for name in _PACKAGES if (version := _version(name))]
    if not found:
        return Finding("missing", "not installed", "run `pip install -c constraints.txt -e .[dali]`")
    if importable_torch() is None:
        return Finding("wrong", f"{found[0]}, which cannot be tried without torch")
    from hires_gan.data.dali_pipeline import check_installed, cuda_of

    try:
        check_installed(None)
        cuda = cuda_of(import_module("nvidia.dali"))
        if gpu_count():
            check_installed(importable_torch().device("cuda"))
    except (Failure, UsageError) as error:
        return Finding("wrong", f"{', '.join(found)}: {error}")
    where = "on the GPU and on the CPU" if gpu_count() else "on the CPU"
    return Finding("ok", f"{', '.join(found)}, for CUDA {cuda}; it loads, and can decode {where}")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
