"""The bound on memory: full-width passes at 1024x1024 with their second derivatives, in a process of their own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

_PASSES = """
import json, resource, sys
import torch
import torch.nn.functional as F
from hires_gan.networks import stylegan, stylegan2

family, dtype = sys.argv[1], {"fp32": torch.float32, "bf16": torch.bfloat16}[sys.argv[2]]
rooms = {"stylegan": stylegan, "stylegan2": stylegan2}[family]
low = {1024 >> i: dtype for i in range(4)}
G = rooms.Generator(1024, dtypes=low).to(memory_format=torch.channels_last)
D = rooms.Discriminator(1024, group=2, dtypes=low).to(memory_format=torch.channels_last)

def learn(player):
    for network in (G, D):
        network.requires_grad_(network is player)

def fakes(n):
    ws = G.styles(torch.randn(n, 512))
    return ws, G.synthesis(ws, G.synthesis.split_noise(torch.randn(n, G.synthesis.noise_total)))

learn(G)
F.softplus(-D(fakes(2)[1])).mean().backward()
if family == "stylegan2":
    ws, images = fakes(1)
    (path,) = torch.autograd.grad((images * torch.randn_like(images) / 1024).sum(), ws, create_graph=True)
    path.square().sum(2).mean(1).sqrt().sum().backward()
    del ws, images, path
learn(D)
with torch.no_grad():
    images = fakes(2)[1]
real = torch.randn(2, 3, 1024, 1024).to(memory_format=torch.channels_last).requires_grad_()
if family == "stylegan2":
    (F.softplus(D(images)) + F.softplus(-D(real.detach()))).mean().backward()
scores = D(real)
(slope,) = torch.autograd.grad(scores.sum(), real, create_graph=True)
loss = slope.square().sum()
if family == "stylegan":
    loss = loss + (F.softplus(D(images)) + F.softplus(-scores)).mean()
loss.backward()
finite = all(p.grad is not None and bool(p.grad.isfinite().all())
             for p in [*G.parameters(), *D.parameters()] if family == "stylegan2" or p.grad is not None)
print(json.dumps({"gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "finite": finite}))
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("family", ["stylegan", "stylegan2"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_full_width_passes_at_1024_leave_room_in_16_gib(family: str, precision: str) -> None:
    """Two images at once; path lengths on one. A training run adds weights, averages and moments: about 1 GiB."""
    command = [sys.executable, "-c", _PASSES, family, precision]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    print(family, precision, report)
    assert report["finite"]
    assert report["gib"] <= 14
