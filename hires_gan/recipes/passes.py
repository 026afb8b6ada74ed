"""How reals and fakes go through a discriminator: together, or one after the other."""

from __future__ import annotations

from hires_gan.ops.leaving_out import left_out


def in_one_pass(count: int, group: int = 1) -> bool:
    """Whether reals and fakes go together.

    Args:
        count: How many there are of each.
        group: Samples that share something, as a minibatch deviation: no group may hold some of both.
    """
    return count % group == 0 and not left_out("one-pass")
