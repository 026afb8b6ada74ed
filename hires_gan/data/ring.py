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
    """`slots` pieces of shared memory, each for the images of a batch in all of its domains.

    Args:
        slots: How many.
        largest: Bytes of the largest batch in one domain; all of them together are rounded up to whole pages.
        domains: How many there are.
    """

    def __init__(self, slots: int, largest: int, domains: int = 1) -> None:
        self.slots, self.domains = slots, domains
        self.slot_bytes = max(1, -(-domains * largest // _ALIGNMENT)) * _ALIGNMENT
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
        plain = {"slots": self.slots, "domains": self.domains, "slot_bytes": self.slot_bytes}
        return plain | {"descriptor": DupFd(self._descriptor)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.slots, self.domains, self.slot_bytes = state["slots"], state["domains"], state["slot_bytes"]
        self._open(state["descriptor"].detach())

    def images(self, slot: int, samples: int, resolution: int) -> Tensor:
        """The slot as the images of a batch: a view of the shared memory.

        Args:
            slot: Which one.
            samples: How many the batch has; may be 0.
            resolution: Of the images.

        Returns:
            uint8 `[domains * samples, resolution, resolution, 3]`, domain by domain.
        """
        count = self.domains * samples
        size = count * resolution * resolution * 3
        assert size <= self.slot_bytes
        return self._bytes.narrow(0, slot * self.slot_bytes, size).view(count, resolution, resolution, 3)

    def cell(self, slot: int) -> Tensor:
        """The first eight bytes of a slot as int64 `[1]`: a number that several processes share."""
        return self._bytes.narrow(0, slot * self.slot_bytes, 8).view(torch.int64)
