"""How much memory can be taken, in made-up control groups, and whose memory an error says is exhausted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hires_gan import memory
from hires_gan.errors import Failure
from hires_gan.memory import available_memory, is_out_of_machine_memory, is_out_of_memory

GIB = 2**30


def write(folder: Path, **files: int | str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("_dot_", ".")).write_text(f"{content}\n")
    return folder


def test_the_memory_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 10 * GIB})())
    assert available_memory(tmp_path) == 10 * GIB
    assert available_memory(write(tmp_path, memory_dot_max="max", memory_dot_current=5)) == 10 * GIB
    assert available_memory(write(tmp_path, memory_dot_max=4000, memory_dot_current=1000)) == 3000
    assert available_memory(write(tmp_path, memory_dot_max=4000, memory_dot_current=5000)) == 0
    version_1 = tmp_path / "version-1"
    write(version_1 / "memory", memory_dot_limit_in_bytes=700, memory_dot_usage_in_bytes=200)
    assert available_memory(version_1) == 500


@pytest.mark.parametrize(
    ("used", "counts", "left"),
    [
        (7000, "anon 2500\nfile 4500\ninactive_file 4000\nactive_file 500", 5000),
        (7000, "anon 7000\ninactive_file 0", 1000),
        (100, "inactive_file 700", 8000),  # counted at two moments: never more than the limit
        (9000, "inactive_file 300", 0),
        (7000, "inactive_file", 1000),
        (7000, "inactive_file many", 1000),
    ],
)
def test_files_that_were_read_are_given_up_for_whoever_needs_the_memory(
    used: int, counts: str, left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container of 8000 bytes, as version 2 and version 1 tell of it; the machine has more."""
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 10 * GIB})())
    second, first = tmp_path / "version-2", tmp_path / "version-1"
    write(second, memory_dot_max=8000, memory_dot_current=used, memory_dot_stat=counts)
    assert available_memory(second) == left
    whole = counts.replace("inactive_file", "total_inactive_file")
    one = {"memory_dot_limit_in_bytes": 8000, "memory_dot_usage_in_bytes": used}
    write(first / "memory", **one, memory_dot_stat=f"inactive_file 1\n{whole}")
    assert available_memory(first) == left


def test_the_machine_may_have_less_than_a_container_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 500})())
    write(tmp_path, memory_dot_max=8000, memory_dot_current=7000, memory_dot_stat="inactive_file 4000")
    assert available_memory(tmp_path) == 500


@pytest.mark.parametrize(
    "words",
    [
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUDA driver error: out of memory",
        "FIND was unable to find an engine to execute this computation",
    ],
)
def test_what_libraries_say_of_a_card(words: str) -> None:
    assert is_out_of_memory(RuntimeError(words)) and not is_out_of_machine_memory(RuntimeError(words))
    assert not is_out_of_memory(Failure(words)), "somebody else's words, told again"


def test_the_allocator_of_a_card() -> None:
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    assert is_out_of_memory(error) and not is_out_of_machine_memory(error)


def test_the_machine() -> None:
    """No machine has 2**62 bytes."""
    with pytest.raises(MemoryError) as numpys:
        np.empty(2**62, np.uint8)
    with pytest.raises(RuntimeError) as torchs:
        torch.empty(2**62, dtype=torch.uint8)
    for error in (numpys.value, torchs.value, MemoryError()):
        assert is_out_of_memory(error) and is_out_of_machine_memory(error), error


@pytest.mark.parametrize(
    "words", ["no", "CUDA error: an illegal memory access", "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"]
)
def test_what_is_another_error(words: str) -> None:
    assert not is_out_of_memory(RuntimeError(words))
