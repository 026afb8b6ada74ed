"""How much memory can be taken, and how it is told that there is none left."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

_CGROUP = Path("/sys/fs/cgroup")
_GROUPS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",  # with the groups below it, as the usage
    ),
)
"""Of a control group of version 2 and 1: the limit, what is used, the counts by kind, and the kind that is given up."""

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
    """Bytes that can be taken without swapping, and without passing the limit of a container.

    What the kernel keeps of files that were read lately counts as used there, but is given up for whoever needs it.
    """
    free = int(psutil.virtual_memory().available)
    for limit, used, counts, given_up in _GROUPS:
        try:
            whole, taken = (int((cgroup / name).read_text()) for name in (limit, used))
        except (OSError, ValueError):  # version 2 writes "max" for no limit
            continue
        held = max(0, taken - _count(cgroup / counts, given_up))
        return max(0, min(free, whole - held))
    return free


def _count(counts: Path, name: str) -> int:
    """Bytes of one kind in the counts of a control group; 0 where it is not told."""
    try:
        lines = [line.split() for line in counts.read_text().splitlines()]
        return next((int(line[1]) for line in lines if line[:1] == [name]), 0)
    except (OSError, ValueError, IndexError):
        return 0


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
