"""Run by each of several processes: claims to be what it is told, greets the others, and sums with them.

python claims.py CLAIMS [TIMEOUT]; CLAIMS is JSON: by rank, what differs on its card, or "absent" for one that never
comes. In the first attempt of a launch that starts processes again, all of them end once they have met.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from datetime import timedelta

import torch
import torch.distributed as dist

from hires_gan.errors import Elsewhere, Failure, UsageError
from hires_gan.training.greeting import Card, greet
from hires_gan.training.launcher import find_place


def main(claims: dict[str, object], timeout: float) -> int:
    place = find_place(os.environ)
    assert place is not None
    claim = claims.get(str(place.rank), {})
    if claim == "absent":
        return 0
    assert isinstance(claim, dict)
    card = replace(Card("here", place.local_rank, place.size, "cpu", versions={"torch": "2.11.0"}), **claim)
    try:
        store = greet(place, card, timeout)
    except Elsewhere:
        return 1
    except Failure as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2 if isinstance(error, UsageError) else 1
    span = timedelta(seconds=timeout)
    dist.init_process_group("gloo", store=store, rank=place.rank, world_size=place.size, timeout=span)
    total = torch.tensor([1.0 + place.rank])
    dist.all_reduce(total)
    print(f"rank {place.rank} sums to {total.item():g}", file=sys.stderr, flush=True)
    dist.barrier()  # the launcher ends all of them once one has ended: each has said its sum before
    if os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0" and os.environ["TORCHELASTIC_MAX_RESTARTS"] != "0":
        os._exit(3)
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    ended = main(json.loads(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 120)
    sys.stderr.flush()
    # Where a thread of torch's, for which nobody waits any longer, comes back while Python ends, the process aborts.
    os._exit(ended)
