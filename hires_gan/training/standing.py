"""Where the processes of a run stand, in words: for the sentence that ends a run which hangs, and for its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hires_gan.training.beats import Beat


@dataclass(frozen=True)
class Standing:
    """What is known of a process.

    Attributes:
        rank: Its number.
        beat: How it was when it was heard of last; None if it never was.
        silent: Seconds since then.
        answers: Whether that is so short ago that it can be said to answer.
    """

    rank: int
    beat: Beat | None
    silent: float
    answers: bool

    @property
    def place(self) -> str:
        """What it is doing; of a process that does not answer, what it was doing last."""
        if self.beat is None:
            return "not heard of, since the store of the launch does not answer,"
        name = f"waiting for the others ({self.beat.activity})" if self.beat.waits else f"in {self.beat.activity}"
        return name if self.answers else f"not answering, last {name}"

    @property
    def seconds(self) -> float:
        """For how long."""
        if self.beat is None or not self.answers:
            return self.silent
        return self.beat.seconds + self.silent

    @property
    def machine(self) -> str:
        """Where it runs."""
        return "an unknown machine" if self.beat is None else f"{self.beat.host}, process {self.beat.pid}"


def in_words(standings: Sequence[Standing]) -> str:
    """Such as: rank 1 in data for 33 s; ranks 0, 2-7 waiting for the others (sum of gradients) for 31 s.

    Those come first for whom the others wait.
    """
    behind, groups = odd_ones(standings), dict[str, list[Standing]]()
    for one in sorted(standings, key=lambda one: (one.rank not in behind, one.rank)):
        groups.setdefault(one.place, []).append(one)
    longest = {place: max(one.seconds for one in ones) for place, ones in groups.items()}
    return "; ".join(
        f"{ranks([o.rank for o in ones])} {place} for {longest[place]:.0f} s" for place, ones in groups.items()
    )


def odd_ones(standings: Sequence[Standing]) -> list[int]:
    """The ranks for whom the others wait, as far as that can be told; none where all stand at the same place.

    They are those that do not answer, or else those that do not wait for others, or else those that have met the others
    less often than the rest.
    """
    silent = [one.rank for one in standings if not one.answers]
    if silent:
        return silent
    beats = {one.rank: one.beat for one in standings if one.beat is not None}
    busy = [rank for rank, beat in beats.items() if not beat.waits]
    if busy:
        return busy if len(busy) < len(beats) else []
    least = min((beat.meetings for beat in beats.values()), default=0)
    late = [rank for rank, beat in beats.items() if beat.meetings == least]
    return late if len(late) < len(beats) else []


def advice(standings: Sequence[Standing]) -> str:
    """Where to look first."""
    behind = [one for one in standings if one.rank in odd_ones(standings)]
    if len(standings) == 1:
        return "its stack says where"
    if not behind:
        return "none is behind the others: look at the network between them"
    more = f" and {len(behind) - 1} more" if len(behind) > 1 else ""
    return f"look first at rank {behind[0].rank} ({behind[0].machine}){more}"


def ranks(numbers: Sequence[int]) -> str:
    """Such as: rank 3, or ranks 0, 2-7."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    text = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"{'rank' if len(numbers) == 1 else 'ranks'} {text}"


def page(sentence: str, standings: Sequence[Standing], stacks: Mapping[int, str]) -> str:
    """The report: the sentence, and where every process stands, with its stacks."""
    parts = [sentence, *(_section(one, stacks.get(one.rank)) for one in standings)]
    return "\n\n".join(parts) + "\n"


def _section(one: Standing, stack: str | None) -> str:
    head = f"=== rank {one.rank} ({one.machine}): {one.place} for {one.seconds:.1f} s"
    if one.beat is not None:
        head += f"; {one.beat.nimg} images shown, has met the others {one.beat.meetings} times"
    missing = (
        "No stack: it is stopped or gone, or it is in code that does not let Python's other threads run (then its "
        "stack is on its own standard error)."
    )
    return f"{head}\n\n{missing if stack is None else stack.rstrip()}"
