"""The bytes that `hires-gan bench train` counts for an op: of what it reads, and of what it writes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from hires_gan.bench.train_ops import recording

CPU = torch.device("cpu")


def moved(work: Callable[[], object]) -> list[tuple[str, int]]:
    with recording({}, CPU) as ops:
        work()
    return [(op.name.removeprefix("aten."), op.bytes) for op in ops]


def test_each_input_and_each_result_counts_once():
    x, y, z = (torch.zeros(2, 3, 4, 4) for _ in range(3))  # of 384 bytes
    assert moved(lambda: x + y) == [("add", 3 * 384)]
    assert moved(lambda: x + x) == [("add", 2 * 384)]
    assert moved(lambda: x + torch.ones(1).expand(3, 1, 1)) == [("ones", 4), ("add", 2 * 384 + 4)]
    assert moved(lambda: x.half()) == [("_to_copy", 384 + 192)]
    assert moved(lambda: x.add_(y)) == [("add_", 3 * 384)]
    assert moved(lambda: x.copy_(y)) == [("copy_", 2 * 384)]
    assert moved(lambda: x.zero_()) == [("zero_", 384)]
    assert moved(lambda: torch.zeros_like(x)) == [("zeros_like", 384)]
    assert moved(lambda: torch.add(x, y, out=x)) == [("add", 3 * 384)]
    assert moved(lambda: torch.add(x, y, out=z)) == [("add", 3 * 384)]
    assert moved(lambda: (x.view(-1), x.permute(1, 0, 2, 3), x[1:], x.detach(), torch.empty_like(x), x.chunk(2))) == []
    assert moved(lambda: x[:, :1] * 1.0) == [("mul", 128 + 128)]


IMAGES, WEIGHTS, RESULTS = 2 * 3 * 8 * 8 * 4, 5 * 3 * 3 * 3 * 4, 2 * 5 * 8 * 8 * 4


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("x", RESULTS + WEIGHTS + IMAGES),
        ("w", RESULTS + IMAGES + WEIGHTS),
        ("xw", RESULTS + 2 * IMAGES + 2 * WEIGHTS),
        ("xwb", RESULTS + 2 * IMAGES + 2 * WEIGHTS + 5 * 4),
    ],
)
def test_a_convolutions_gradient_reads_what_it_needs(wanted: str, expected: int):
    """That of the images the weights, that of the weights the images, that of the bias neither."""
    given = {
        "x": torch.zeros(2, 3, 8, 8, requires_grad=True),
        "w": torch.zeros(5, 3, 3, 3, requires_grad=True),
        "b": torch.zeros(5, requires_grad=True),
    }
    y = nn.functional.conv2d(given["x"], given["w"], given["b"], padding=1)
    gradient, inputs = torch.zeros_like(y), [given[name] for name in wanted]
    assert moved(lambda: torch.autograd.grad(y, inputs, gradient)) == [("convolution_backward", expected)]


def test_lists_that_are_changed_in_place_are_written_too():
    some, others = ([torch.zeros(100), torch.zeros(50)] for _ in range(2))  # of 600 bytes each
    assert moved(lambda: torch._foreach_add_(some, others)) == [("_foreach_add_", 3 * 600)]
    assert moved(lambda: torch._foreach_mul_(some, 2.0)) == [("_foreach_mul_", 2 * 600)]
    assert moved(lambda: torch._foreach_lerp_(some, others, 0.5)) == [("_foreach_lerp_", 3 * 600)]
    assert moved(lambda: torch._foreach_copy_(some, others)) == [("_foreach_copy_", 2 * 600)]
    assert moved(lambda: torch._foreach_zero_(some)) == [("_foreach_zero_", 600)]
    assert moved(lambda: torch._foreach_add(some, others)) == [("_foreach_add", 3 * 600)]


def test_of_what_is_gathered_no_more_is_read_than_is_there():
    x, few, many = torch.zeros(10, 8), torch.tensor([1, 2]), torch.arange(30) % 10  # 32 bytes a row
    assert moved(lambda: x[few]) == [("index", 2 * 64 + 16)]
    assert moved(lambda: x[many]) == [("index", 320 + 30 * 32 + 240)]
    assert moved(lambda: x.index_select(0, few)) == [("index_select", 2 * 64 + 16)]
    assert moved(lambda: nn.functional.embedding(few, x)) == [("embedding", 2 * 64 + 16)]
    assert moved(lambda: x.gather(1, few.expand(10, 2))) == [("gather", 2 * 80 + 16)]
