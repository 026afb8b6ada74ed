"""How much memory can be taken, and how it is told that there is none left."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

_CGROUP = Path("/sys/fs/cgroup")

_MACHINES = "can't allocate memory"
"""What torch says where the machine's memory is exhausted."""
_CARDS = (
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",  # of segments that grow
    "_STATUS_ALLOC_FAILED",  # cuBLAS, cuDNN and others
    "FIND was unable to find an engine",  # cuDNN, where each way to compute has been tried and lacks memory
)
"""What torch says where a card's memory is exhausted, and it is not its allocator that says it."""


def available_memory(cgroup: Path = _CGROUP) -> int:
    """Bytes that can be taken without swapping, and without passing the limit of a container."""
    free = int(psutil.virtual_memory().available)
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            left = int((cgroup / limit).read_text()) - int((cgroup / used).read_text())
        except (OSError, ValueError):  # version 2 writes "max" for no limit
            continue
        return max(0, min(free, left))
    return free


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory of a GPU or of the machine was exhausted.

    Torch has a class of its own only for what its allocator did not get of a GPU.
    """
    if isinstance(error, torch.OutOfMemoryError) or is_out_of_machine_memory(error):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _CARDS)


def is_out_of_machine_memory(error: BaseException) -> bool:
    """Whether it was the machine's, and no GPU's."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _MACHINES in str(error))
