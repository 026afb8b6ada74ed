"""What a checkpoint costs the steps beside which it is written."""

from __future__ import annotations

import shutil
import statistics
from functools import partial
from pathlib import Path
from typing import Any

from hires_gan.bench.train_images import Supply
from hires_gan.bench.train_steps import Stand, time_steps, time_work
from hires_gan.errors import Failure
from hires_gan.training.saving import Copies, Saver

ROUNDS = 3
FOLDER = "checkpoints-of-bench-train"


def measure_checkpoint(stand: Stand, feed: Supply, steps: int, parent: Path) -> dict[str, Any]:
    """Time steps alone, and as many beside a checkpoint that is copied before the first of them.

    Args:
        stand: Has stepped before.
        feed: Its images.
        steps: In each round.
        parent: Where a folder for the checkpoints is made, and removed behind it.

    Returns:
        Medians over the rounds, in seconds: `step`, `copy` (from the device to the host's memory), `lost` (by all steps
        together, beyond the copy), `background`; `lost_share_of_step`; `bytes` of a checkpoint, `steps`.

    Raises:
        Failure: The folder cannot be written.
    """
    folder = parent / FOLDER
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise Failure(f"--checkpoint is {parent}, where {folder} cannot be made: {error.strerror}") from error
    try:
        rounds = _rounds(stand, feed, steps, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    found = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    size = sum(v.numel() * v.element_size() for part in stand.backend.tensors().values() for v in part.values())
    return found | {"lost_share_of_step": found["lost"] / found["step"], "bytes": size, "steps": steps}


def _rounds(stand: Stand, feed: Supply, steps: int, folder: Path) -> list[dict[str, float]]:
    copies = Copies()
    copies.take(stand.backend.tensors())  # memory for them is found once
    found = []
    with Saver(folder, 1) as saver:
        saver.save(0, stand.backend.tensors(), {}, None)
        saver.wait()
        saver.costs.clear()
        for number in range(1, ROUNDS + 1):
            copy, _ = time_work(lambda: copies.take(stand.backend.tensors()), stand.device)
            alone = time_steps(stand, feed, steps).seconds
            beside, _ = time_work(partial(_beside, stand, feed, steps, saver, number), stand.device)
            saver.wait()
            lost = beside - alone - copy
            found.append({"step": alone / steps, "copy": copy, "lost": lost, "background": saver.costs[-1].background})
    return found


def _beside(stand: Stand, feed: Supply, steps: int, saver: Saver, nimg: int) -> None:
    saver.save(nimg, stand.backend.tensors(), {}, None)
    for _ in range(steps):
        stand.step(feed)
