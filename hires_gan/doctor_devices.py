"""What the doctor finds out about GPUs, their driver and the compilers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Literal, NamedTuple

from hires_gan.toolkit import find_toolkit, nvcc_version

GIB = 2**30
Status = Literal["ok", "missing", "wrong"]


class Finding(NamedTuple):
    """How one part is."""

    status: Status
    found: str
    remedy: str = ""
    passing: bool = False
    """Whether it may be well after a while, though nobody does anything on this machine."""


def importable_torch() -> Any:
    """The module, or None if it is absent or fails to load: one line of the report says why, not every line."""
    try:
        import torch
    except Exception:
        return None
    return torch


def gpu_count() -> int:
    """How many GPUs torch sees."""
    torch = importable_torch()
    return int(torch.cuda.device_count()) if torch else 0


def driver(asked: bool = False) -> Finding:
    """NVIDIA's driver: there, answering, and new enough for the CUDA that torch was built for.

    Args:
        asked: Whether GPUs are asked for, so that training on the CPU is no way out.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        if not _kernel_driver():
            return Finding("missing", "no NVIDIA driver" + ("" if asked else "; training runs on the CPU"))
        return Finding(
            "wrong",
            f"NVIDIA's kernel driver is loaded, but its library does not answer ({error})",
            "start the container with the NVIDIA container toolkit (`--gpus all`); after a driver update, reboot",
        )
    try:
        version, code = pynvml.nvmlSystemGetDriverVersion(), pynvml.nvmlSystemGetCudaDriverVersion_v2()
    finally:
        pynvml.nvmlShutdown()
    torch = importable_torch()
    return _driver_for_torch(str(version), (code // 1000, code % 1000 // 10), torch and torch.version.cuda)


def _kernel_driver() -> bool:
    return any(Path(path).exists() for path in ("/proc/driver/nvidia/version", "/dev/nvidiactl"))


def _driver_for_torch(version: str, supports: tuple[int, int], built: str | None) -> Finding:
    """Any driver of the same CUDA major version will do (CUDA's minor version compatibility)."""
    found = f"{version}, for CUDA up to {supports[0]}.{supports[1]}"
    if built is not None and supports[0] < int(built.split(".")[0]):
        return Finding(
            "wrong",
            f"{found}, but torch is built for CUDA {built}",
            f"update the driver, or install a torch built for CUDA {supports[0]}",
        )
    return Finding("ok", found)


def cuda() -> Finding:
    """The GPUs that torch sees and has kernels for."""
    torch = importable_torch()
    if torch is None:
        return Finding("missing", "torch cannot be imported")
    if not torch.cuda.is_available():
        return _no_device(torch.version.cuda, _kernel_driver(), os.environ.get("CUDA_VISIBLE_DEVICES"))
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    found = ", ".join(f"{device.name} ({device.total_memory / GIB:.0f} GiB)" for device in devices)
    known = torch.cuda.get_arch_list()
    for device in devices:
        if not runs_on((device.major, device.minor), known):
            remedy = f"install a torch built for compute capability {device.major}.{device.minor}"
            return Finding("wrong", f"{found}; torch has kernels for {', '.join(known)} only", remedy)
    return Finding("ok", found)


def _no_device(built: str | None, driver: bool, visible: str | None) -> Finding:
    if not driver:
        return Finding("missing", "no GPU; training runs on the CPU")
    if built is None:
        remedy = "install a CUDA build: `pip install --force-reinstall -c constraints.txt torch torchvision`"
        return Finding("wrong", "there is an NVIDIA driver, but torch is built without CUDA", remedy)
    if visible is not None and visible.strip() in ("", "-1", "NoDevFiles"):
        return Finding("missing", f"CUDA_VISIBLE_DEVICES={visible!r} hides every GPU", "unset it")
    return Finding(
        "wrong",
        f"there is an NVIDIA driver, but torch sees no GPU (CUDA_VISIBLE_DEVICES is {visible or 'not set'})",
        "compare CUDA_VISIBLE_DEVICES and the container's `--gpus` with what `nvidia-smi -L` lists",
    )


def runs_on(capability: tuple[int, int], kernels: list[str]) -> bool:
    """Whether kernels such as sm_80 (same major version, no newer minor) or compute_90 (compiled on use) fit a GPU."""
    major, minor = capability
    for kernel in kernels:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", kernel)
        if match is None:  # AMD's names
            return True
        kind, built = match[1], (int(match[2]), int(match[3]))
        if (kind == "sm" and built[0] == major and built[1] <= minor) or (kind == "compute" and built <= capability):
            return True
    return False


def compiler() -> Finding:
    """A C++ compiler that finds its own headers."""
    wanted = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    path = next((path for command in wanted if (path := shutil.which(command))), None)
    remedy = "install a C++ compiler, such as `apt install g++`"
    if path is None:
        return Finding("missing", f"no {' or '.join(wanted)} on the PATH", remedy)
    command = [path, "-x", "c++", "-fsyntax-only", "-"]
    done = subprocess.run(command, input="#include <vector>\n", capture_output=True, text=True, timeout=20)  # noqa: S603
    if done.returncode:
        return Finding("wrong", f"{path} cannot compile `#include <vector>`", remedy)
    return Finding("ok", path)


def toolkit() -> Finding:
    """The CUDA toolkit that `make setup` compiles with."""
    found = find_toolkit()
    if found.root is not None:
        version = nvcc_version(found.root)
        return Finding("ok", f"{found.root}, {f'nvcc {version}, ' if version else ''}by {found.how}")
    if os.environ.get("CUDA_HOME"):
        return Finding("wrong", found.how, "export CUDA_HOME=<the folder of the CUDA toolkit>, or unset it")
    return Finding("missing", found.how, "install it, or export CUDA_HOME=<its folder>; then run `make ops`")
