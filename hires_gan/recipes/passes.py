"""How reals and fakes go through a discriminator: together, or one after the other."""

from __future__ import annotations

from hires_gan.ops.leaving_out import left_out


def whole_groups(count: int, group: int) -> bool:
    """Whether no group would hold reals and fakes both, where they go together.

    Args:
        count: How many there are of each.
        group: Samples that share something, as a minibatch deviation.
    """
    return count % group == 0


def in_one_pass(count: int, group: int = 1) -> bool:
    """Whether reals and fakes go together: where they can, as `whole_groups` has it, unless that is left out."""
    return whole_groups(count, group) and not left_out("one-pass")
