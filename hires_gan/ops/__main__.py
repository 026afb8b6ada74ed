"""`python -m hires_gan.ops`: which compiled ops are here, and if not, why."""

from __future__ import annotations

import sys

from hires_gan.ops import native

for device, name in (("cpu", "CPU"), ("cuda", "CUDA")):
    sys.stdout.write(f"compiled ops, {name}: {native.describe(device)}\n")
