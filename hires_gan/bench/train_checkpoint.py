"""What a checkpoint costs the steps beside which it is written."""

from __future__ import annotations

import shutil
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from hires_gan.bench.train_queue import Queue, begin_anew
from hires_gan.bench.train_steps import Stand, time_steps, time_work
from hires_gan.errors import Failure
from hires_gan.progress import say
from hires_gan.training.saving import Copies, Saver

ROUNDS = 3
PREFIX = "checkpoints-of-bench-train-"
Record = dict[str, Any]


def require_folder(parent: Path) -> None:
    """See, before anything is measured, that checkpoints can be written to a folder; it is made where it is not there.

    Raises:
        Failure: They cannot.
    """
    with _fresh(parent) as own:
        left = sorted(folder for folder in parent.glob(f"{PREFIX}*") if folder != own)
    for folder in left:
        say(f"{folder} is of another bench train; where that was killed, nobody removes it but you")


@contextmanager
def _fresh(parent: Path) -> Iterator[Path]:
    """A folder that nobody else has, removed at the end; what is killed leaves its own, which is in nobody's way."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    except OSError as error:
        raise Failure(
            f"--checkpoint is {parent}, where no folder can be made: {error.strerror}; name one that can be written to"
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measure_checkpoint(stand: Stand, feed: Queue, steps: int, parent: Path) -> Record:
    """Time steps alone, and the same ones beside a checkpoint that is copied before the first of them.

    Args:
        stand: Has stepped before.
        feed: Its images.
        steps: In each round.
        parent: Where a folder for the checkpoints is made, and removed behind it.

    Returns:
        Medians over the rounds, in seconds: `step`, `copy` (from the device to the host's memory), `lost` (by all steps
        together, beyond the copy), `background`; `lost_share_of_step`; `bytes` of a checkpoint, `steps`; and what
        `in_a_run` says.

    Raises:
        Failure: The folder cannot be written.
    """
    with _fresh(parent) as folder:
        rounds = _rounds(stand, feed, steps, folder)
    found = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    size = sum(v.numel() * v.element_size() for part in stand.backend.tensors().values() for v in part.values())
    found |= {"lost_share_of_step": found["lost"] / found["step"], "bytes": size, "steps": steps}
    return found | in_a_run(found, stand.plan.checkpoint.every_kimg, stand.place.stage.batch)


def in_a_run(found: Record, every_kimg: float | None, batch: int) -> Record:
    """What such checkpoints cost a run that writes them as often as it is configured to.

    Args:
        found: `step`, `copy`, `lost`, `background` in seconds, and `steps`.
        every_kimg: From one to the next; None: there are no regular ones.
        batch: Images of a step.

    Returns:
        `every_kimg`; `share_of_wall_time`, the copy and what the steps lose by all of the time from one checkpoint to
        the next, None where there is no next one; `remark`, a sentence where not all that is lost was seen, or None.
    """
    return {
        "every_kimg": every_kimg,
        "share_of_wall_time": None if every_kimg is None else _share(found, every_kimg, batch),
        "remark": _cut_short(found),
    }


def _share(found: Record, every_kimg: float, batch: int) -> float:
    between = max(every_kimg * 1e3 / batch, 1) * found["step"]  # at most one at a step's end
    cost = found["copy"] + found["lost"]
    return float(cost / (between + cost))


def _cut_short(found: Record) -> str | None:
    beside = found["steps"] * found["step"]
    if found["background"] <= beside:
        return None
    return (
        f"it is still written when the {found['steps']} steps end, after {beside:.2f} s: what later ones would lose is "
        "not counted; more --steps count it"
    )


def _rounds(stand: Stand, feed: Queue, steps: int, folder: Path) -> list[dict[str, float]]:
    copies = Copies()
    copies.take(stand.backend.tensors())  # memory for them is found once
    feed.take()  # what decodes is started, and its first batch there
    found, first = [], stand.steps
    with Saver(folder, 1) as saver:
        saver.save(0, stand.backend.tensors(), {}, None)
        saver.wait()
        saver.costs.clear()
        for number in range(1, ROUNDS + 1):
            copy, _ = time_work(lambda: copies.take(stand.backend.tensors()), stand.device)
            _go_back(stand, feed, first)
            alone = time_steps(stand, feed, steps).seconds
            _go_back(stand, feed, first)
            beside, _ = time_work(partial(_beside, stand, feed, steps, saver, number), stand.device)
            saver.wait()
            lost = beside - alone - copy
            found.append({"step": alone / steps, "copy": copy, "lost": lost, "background": saver.costs[-1].background})
    return found


def _go_back(stand: Stand, feed: Queue, first: int) -> None:
    """Let the next steps be those from the first on, with the phases that are due in them: they need no whole cycle."""
    begin_anew(stand, feed)
    stand.steps = first


def _beside(stand: Stand, feed: Queue, steps: int, saver: Saver, nimg: int) -> None:
    saver.save(nimg, stand.backend.tensors(), {}, None)
    for _ in range(steps):
        stand.step(feed)
