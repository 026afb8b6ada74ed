"""One of two processes, of which the first works for several times as long as the others wait: `RANK FILE SECONDS`.

For each way in which the work can end, both write one line of what came of it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist

from hires_gan.data.waiting import Asked, Stopped, never
from hires_gan.errors import Elsewhere, Failure
from hires_gan.evaluation import crew
from hires_gan.training.world import World, join, telling_losses

TIMEOUT = 8.0


def busy(asked: Asked, seconds: float) -> int:
    """What takes long, block by block."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if asked():
            raise Stopped
        time.sleep(0.05)
    return 7


def failing(asked: Asked) -> int:
    busy(asked, 0.5)
    raise Failure("no room")


def full(asked: Asked) -> int:
    busy(asked, 0.5)
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def full_on_the_second(rank: int) -> int:
    if rank == 1:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.")
    return rank


def dying(asked: Asked) -> int:
    busy(asked, 0.5)
    os._exit(3)


def told(world: World, work: Callable[[Asked], int], stopped: Asked = never) -> None:
    tell(world, lambda: crew.by_first(world, work, stopped))


def tell(world: World, work: Callable[[], object]) -> None:
    began = time.monotonic()
    try:
        with telling_losses(world):
            found = work()
    except (Stopped, Failure, Elsewhere) as error:
        found = f"{type(error).__name__} {error}"
    print(f"{found} after {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    rank, file, seconds = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    limit = timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2, timeout=limit)
    world = join(torch.device("cpu"), TIMEOUT)
    crew.SIGN = 0.3
    told(world, lambda asked: busy(asked, seconds))
    told(world, failing)
    began = time.monotonic()
    told(world, lambda asked: busy(asked, 600), lambda: rank == 1 and time.monotonic() > began + 1)
    told(world, lambda asked: busy(asked, 600), lambda: rank == 0 and time.monotonic() > began + 2)
    told(world, full)
    tell(world, lambda: crew.in_step(world, lambda: full_on_the_second(rank)))
    told(world, dying)
    os._exit(0)  # the group is broken: nothing of it is to be taken down in order
