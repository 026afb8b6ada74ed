"""A ring of batches in memory that several processes share.

The memory is an anonymous file (memfd): it needs no /dev/shm, which containers keep small, and it vanishes with the
last process that holds it, however that process ends.
"""

from __future__ import annotations

import mmap
import os
from multiprocessing.reduction import DupFd
from typing import Any

import torch
from torch import Tensor

_ALIGNMENT = 4096


class Ring:
    """`slots` pieces of shared memory, each of `slot_bytes` bytes.

    Args:
        slots: How many.
        slot_bytes: The size of one; rounded up to whole pages.
    """

    def __init__(self, slots: int, slot_bytes: int) -> None:
        self.slots = slots
        self.slot_bytes = max(1, -(-slot_bytes // _ALIGNMENT)) * _ALIGNMENT
        descriptor = os.memfd_create("hires_gan_ring", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, slots * self.slot_bytes)
        self._open(descriptor)

    def _open(self, descriptor: int) -> None:
        self._descriptor = descriptor
        # The tensor keeps the mapping alive, and the mapping the memory: a view outlives the ring.
        self._bytes = torch.frombuffer(mmap.mmap(descriptor, self.slots * self.slot_bytes), dtype=torch.uint8)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def __getstate__(self) -> dict[str, Any]:
        """Pickled only to a process that is being started: the descriptor is handed over, not the memory."""
        return {"slots": self.slots, "slot_bytes": self.slot_bytes, "descriptor": DupFd(self._descriptor)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.slots, self.slot_bytes = state["slots"], state["slot_bytes"]
        self._open(state["descriptor"].detach())

    def images(self, slot: int, count: int, resolution: int) -> Tensor:
        """The slot as uint8 `[count, resolution, resolution, 3]`: a view of the shared memory; `count` may be 0."""
        size = count * resolution * resolution * 3
        assert size <= self.slot_bytes
        return self._bytes.narrow(0, slot * self.slot_bytes, size).view(count, resolution, resolution, 3)

    def cell(self, slot: int) -> Tensor:
        """The first eight bytes of a slot as int64 `[1]`: a number that several processes share."""
        return self._bytes.narrow(0, slot * self.slot_bytes, 8).view(torch.int64)
