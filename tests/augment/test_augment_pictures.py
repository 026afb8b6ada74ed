"""A real photograph through each transformation: a grid to look at, and what can be said of it in numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from augment_literal import ALL, only, source
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from hires_gan.augment.draws import draw
from hires_gan.augment.pipe import augment
from hires_gan.randomness import Purpose


@pytest.mark.shared
def test_a_photograph_stays_a_photograph(shared_data: Path, tmp_path: Path) -> None:
    with Image.open(sorted((shared_data / "faces_london" / "smiling").glob("*.jpg"))[3]) as picture:
        side = min(picture.size)
        photo = pil_to_tensor(picture.convert("RGB").crop((0, 0, side, side)).resize((64, 64))).float() / 127.5 - 1
    x = photo.expand(10, 3, 64, 64)
    rows = []
    for name in ALL:
        found = augment(x, draw(source(10, seed=3), Purpose.AUGMENT_REAL, only(name), x.shape), 1.0, only(name))
        assert found.isfinite().all()
        assert found.abs().max() < 12, name
        if name in ("xflip", "rotate90", "xint", "scale", "rotate", "aniso", "xfrac"):  # no new colours, but ringing
            assert found.mean((0, 2, 3)) == pytest.approx(photo.mean((1, 2)), abs=0.25)
            assert found.max() < photo.max() + 0.35
            assert found.min() > photo.min() - 0.35
        rows.append(torch.cat(list(found), dim=2))
    grid = torch.cat(rows, dim=1).clamp(-1, 1)
    picture = Image.fromarray(((grid + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy())
    picture.save(tmp_path / "augmented.png")
    print(tmp_path / "augmented.png")
