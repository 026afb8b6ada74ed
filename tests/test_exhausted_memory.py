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
