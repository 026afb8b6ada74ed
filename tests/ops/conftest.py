"""The native implementation on each device that it is built for, as a fixture."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from hires_gan.ops import backend

# The C++ twin runs wherever the tests do; CUDA where there is a GPU. A missing CPU library fails the tests rather than
# skipping them, unless the environment says that none was meant to be built.
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def require(device: str) -> None:
    """Skip, with the reason, where this device's native library is not meant to be."""
    if os.environ.get("HIRES_GAN_BUILD") == "none":
        pytest.skip("HIRES_GAN_BUILD=none: there is no native library to test")
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def exact_convolutions() -> Iterator[None]:
    """No TF32 and no atomic sums in the convolutions around the ops: what differs then is the ops' own."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


@pytest.fixture(params=DEVICES)
def device(request) -> Iterator[torch.device]:
    """A device, with the native implementation chosen for the length of the test."""
    require(request.param)
    with backend("native"):
        yield torch.device(request.param)


@pytest.fixture
def native_cpu() -> Iterator[None]:
    """The C++ twin, for tests that have no meaning on another device."""
    require("cpu")
    with backend("native"):
        yield
