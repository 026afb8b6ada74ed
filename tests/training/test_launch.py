"""What a launch sets for a whole process."""

from __future__ import annotations

import pytest
import torch

from hires_gan.training.launch import choose_float32


@pytest.fixture(autouse=True)
def as_it_was():
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, cudnn.benchmark, matmul.allow_tf32
    yield
    cudnn.allow_tf32, cudnn.benchmark, matmul.allow_tf32 = before


@pytest.mark.parametrize("performance", ["fast", "reference"])
@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32", "fp64"])
def test_float32_rounds_to_tf32_only_in_fast_half_precision(precision, performance):
    choose_float32(precision, performance)
    rounds = performance == "fast" and precision in ("bf16", "fp16")
    assert torch.backends.cudnn.allow_tf32 == rounds
    assert torch.backends.cuda.matmul.allow_tf32 == rounds
    assert torch.backends.cudnn.benchmark
