"""One of two processes that measure with different files: `crew_apart.py RUN SHARDS WEIGHTS SHARDS WEIGHTS`."""

from __future__ import annotations

import sys
from pathlib import Path

from hires_gan.errors import Elsewhere, UsageError
from hires_gan.evaluation.command import Request, agreed_checkpoint, evaluate
from hires_gan.evaluation.instruments import Sources
from hires_gan.training.launch import join_launch
from hires_gan.training.settings import BackendSettings

if __name__ == "__main__":
    world = join_launch(BackendSettings())
    shards, weights = sys.argv[2 + 2 * world.rank : 4 + 2 * world.rank]
    request = Request(("fid",), (shards,), count=20, sources=Sources("tiny_network:Tiny", Path(weights)))
    try:
        evaluate(agreed_checkpoint(sys.argv[1], world), request, world, world.device)
    except UsageError as error:
        print(f"first {world.first}: {error}", flush=True)
    except Elsewhere as error:
        print(f"elsewhere, usage {error.usage}", flush=True)
    world.leave()
