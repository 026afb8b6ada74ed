"""Fixtures that every room's tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# One thread per process, before anything imports torch: the tests' networks are so small that threads only wait for
# each other, all the more where several processes share two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# As `hires-gan` does: on a GPU, tests take memory from the allocator that a run has.
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
# How long an example takes says more of what else the machine does than of the code. The rest is as hypothesis has it,
# which looks whether CI is set.
settings.register_profile("unhurried", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real photographs beside the repository; skips where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the real photographs in ../shared/data, which are not on this machine")
    return folder
