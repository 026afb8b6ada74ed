"""Reals and fakes in one pass of Progressive GAN's discriminator."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_progressive_recipe import FADE, close, forwards, recipe, step_of

from hires_gan.ops.leaving_out import leaving_out


@pytest.mark.parametrize("loss", [{"name": "wgan_gp"}, {"name": "hinge"}, {"name": "wgan", "label_weight": 1}])
@pytest.mark.parametrize("nimg", [0, FADE])
def test_reals_and_fakes_are_judged_in_one_pass_as_they_are_in_two(loss: dict[str, Any], nimg: int) -> None:
    """No group of the minibatch deviation holds some of both; where one would, there are two passes."""
    model = recipe(loss, labels=(2, 1, 1))
    for n, at_once in ((4, 1), (model.discriminator.group - 1, 2)):
        step = step_of(4 if nimg == 0 else 8, n=n, labels=True)
        with forwards(model.discriminator) as judged:
            found = model.phases(nimg)[0].function(step)
        more = 1 if "gp" in found.losses else 0
        assert len(judged) == at_once + more
        with leaving_out(["one-pass"]), forwards(model.discriminator) as judged:
            expected = model.phases(nimg)[0].function(step)
        assert len(judged) == 2 + more
        for name, values in expected.losses.items():
            close(found.losses[name], values)
        gradients, others = (
            torch.autograd.grad(
                torch.stack([term.sum() for term in outcome.losses.values()]).sum(),
                list(model.discriminator.parameters()),
                allow_unused=True,
            )
            for outcome in (found, expected)
        )
        for one, other in zip(gradients, others, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                close(one, other)
