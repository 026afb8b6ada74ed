"""Which samples of a step are whose: consecutive whole groups for each process, as even as that goes."""

from __future__ import annotations

from collections import Counter


def share(batch: int, group: int, rank: int, size: int) -> range:
    """The samples of one process, counted from the first of the step.

    Groups go through the networks together, so that they stay together: the first processes get one more where they do
    not divide evenly, and the last ones none where there are too few. Behind the last whole group, what is left of the
    batch goes with the last process that has any.

    Args:
        batch: The global batch.
        group: Samples that must stay together.
        rank: Of the process, from 0.
        size: How many processes there are.
    """
    groups = max(1, batch // group)
    each, more = divmod(groups, size)
    first = rank * each + min(rank, more)
    last = first + each + (rank < more)
    end = batch if last == groups else last * group
    return range(min(first * group, batch), end) if last > first else range(batch, batch)


def at_once(batch: int, group: int, size: int, micro: int) -> bool:
    """Whether every process has samples, and computes them in one micro-batch.

    Args:
        batch: The global batch.
        group: Samples that must stay together.
        size: How many processes there are.
        micro: Samples of a micro-batch.
    """
    return all(0 < len(share(batch, group, rank, size)) <= micro for rank in range(size))


def in_words(batch: int, group: int, size: int, micro: int) -> str:
    """How a step is divided: `32 images a step: 12 for each of 2 processes, 8 for 1; 4 at once`; arguments as above."""
    counts = Counter(len(share(batch, group, rank, size)) for rank in range(size))
    (most, many), *rest = counts.items()
    parts = [f"{most} for each of {many} processes" if many > 1 else f"{most} for 1 process"]
    parts += [f"{count or 'none'} for {processes}" for count, processes in rest]
    return f"{batch} images a step: {', '.join(parts)}; {min(micro, most)} at once"
