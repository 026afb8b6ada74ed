"""How much memory this process takes at most: on a GPU by torch's counts, on a CPU by the kernel's."""

from __future__ import annotations

import ctypes
import gc
import resource
from pathlib import Path
from typing import Protocol

import psutil
import torch

from hires_gan.memory import available_memory

_STATUS = Path("/proc/self/status")
_FORGET = Path("/proc/self/clear_refs")
_FORGET_PEAK = "5"
"""What makes Linux forget the peak of a process's resident memory so far (proc_pid_clear_refs(5))."""


class Meter(Protocol):
    """Counts bytes from what the process held when the meter was made.

    Attributes:
        capacity: Bytes that the process could take then; what others held is not among them.
        place: What has this memory, for people.
        remark: What people should know of these counts; empty if there is nothing.
        kills: Whether who takes too much is killed, in place of being told.
    """

    capacity: int
    place: str
    remark: str
    kills: bool

    def begin(self) -> None:
        """Give back what is not used, and forget the peak so far."""

    def peak(self) -> int:
        """The most that tensors took since `begin`."""

    def pooled(self) -> int:
        """What is kept though no tensor lies there, and cannot be given back: the memory of CUDA graphs."""

    def outside(self) -> int:
        """What the device has lent for other things than tensors: kernels, libraries, graphs."""


def meter_of(device: torch.device) -> Meter:
    """What counts on this device."""
    return CudaMeter(device) if device.type == "cuda" else ResidentMeter()


class CudaMeter:
    """Counts what torch's allocator hands out, and what the card has lent besides.

    Args:
        device: The card.
    """

    remark = ""
    kills = False

    def __init__(self, device: torch.device) -> None:
        self._device = device
        _give_back(device)
        free, whole = torch.cuda.mem_get_info(device)
        self._free, self._allocated = free, torch.cuda.memory_allocated(device)
        self._reserved = torch.cuda.memory_reserved(device)
        # What torch holds for tensors that are gone, and could not give back, can be used again.
        self.capacity = free + self._reserved - self._allocated
        self.place = f"{torch.cuda.get_device_name(device)} of {whole / 2**30:.1f} GiB"

    def begin(self) -> None:
        """Empty torch's cache; kernels are waited for."""
        _give_back(self._device)

    def peak(self) -> int:
        """The most that was allocated."""
        return torch.cuda.max_memory_allocated(self._device) - self._allocated

    def pooled(self) -> int:
        """Reserved, and still so when the cache was emptied; to be asked behind `begin`."""
        used = torch.cuda.memory_allocated(self._device) - self._allocated
        return max(0, torch.cuda.memory_reserved(self._device) - self._reserved - used)

    def outside(self) -> int:
        """By how much more the card's free memory has shrunk than torch has reserved: another program's, too."""
        free, _ = torch.cuda.mem_get_info(self._device)
        return max(0, self._free - free - (torch.cuda.memory_reserved(self._device) - self._reserved))


def _give_back(device: torch.device) -> None:
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)


class ResidentMeter:
    """Counts the resident memory of this process, everything in it included: pages of programs, too."""

    place = "the CPU"
    kills = True

    def __init__(self) -> None:
        _trim()
        self.capacity, self._before = available_memory(), psutil.Process().memory_info().rss
        self._forgets = _forget_peak()
        self.remark = "" if self._forgets else _NO_FORGETTING

    def begin(self) -> None:
        """Give freed memory back to the system, which would else count for what comes next."""
        _trim()
        _forget_peak()

    def peak(self) -> int:
        """The most that was resident; where the system forgets no peak, since the process's start."""
        highest = _highest() if self._forgets else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return max(0, highest - self._before)

    def pooled(self) -> int:
        """Nothing."""
        return 0

    def outside(self) -> int:
        """Nothing: it is counted already."""
        return 0


_NO_FORGETTING = (
    "this system does not let a process forget its peak (/proc/self/clear_refs): each figure is the highest of the "
    "process so far"
)


def _forget_peak() -> bool:
    try:
        _FORGET.write_text(_FORGET_PEAK)
    except OSError:
        return False
    return True


def _highest() -> int:
    (line,) = (line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _trim() -> None:
    """Give back what glibc's allocator keeps of freed memory; other allocators have no such call."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
