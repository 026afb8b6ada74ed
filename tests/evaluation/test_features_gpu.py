"""Features and what is computed from them on a GPU: those of the CPU but for rounding, TF32 allowed or not."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import tiny_networks as tiny
import torch

from hires_gan.errors import Failure
from hires_gan.evaluation import weights
from hires_gan.evaluation.coverage import density_and_coverage
from hires_gan.evaluation.features import Extractor, open_extractor
from hires_gan.evaluation.fidelity import precision_recall
from hires_gan.evaluation.memory import telling_no_room

pytestmark = pytest.mark.gpu


def test_inception_is_that_of_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch_fidelity", reason="needs torch-fidelity, whose network it is")
    path = tmp_path / "inception.pth"
    torch.save(tiny.inception_tensors(), path)
    monkeypatch.setattr(weights, "INCEPTION_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    images = tiny.pictures(5, seed=0, side=64)
    expected = open_extractor("inception", path, False, torch.device("cpu"))(images).features
    network = open_extractor("inception", path, False, torch.device("cuda"))
    before = torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = True
        found = network(images.cuda()).features
    finally:
        torch.backends.cudnn.allow_tf32 = before
    assert not found.is_cuda
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * scale)
    alone = torch.cat([network(image[None]).features for image in images])
    torch.testing.assert_close(alone, found, rtol=1e-5, atol=1e-5 * scale)


def test_distances_are_those_of_the_cpu() -> None:
    random = torch.Generator().manual_seed(0)
    reals, fakes = torch.randn(300, 40, generator=random), torch.randn(200, 40, generator=random) * 0.9 + 0.1
    for metric in (precision_recall, density_and_coverage):
        assert metric(reals, fakes, "cuda") == pytest.approx(metric(reals, fakes), abs=0.01)


def test_a_full_gpu_ends_in_a_sentence() -> None:
    def greedy(images: torch.Tensor) -> tuple[torch.Tensor, None]:
        return torch.empty(2**50, dtype=torch.uint8, device=images.device), None

    network = Extractor(greedy, "greedy", "greedy 1", "0", "none", torch.device("cuda"))
    with pytest.raises(Failure, match=r"^the GPU has no room for the evaluation \(CUDA"), telling_no_room():
        network(tiny.pictures(2, seed=0, side=64))
