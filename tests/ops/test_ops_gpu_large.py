"""More elements than 32 bits count: the last blocks of huge images against the definitions of small ones."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from ops_matrix import (
    Resampling,
    bias_act_definition,
    drawn,
    epilogue_definition,
    exact,
    excess,
    magnitude_of,
    upfirdn2d_definition,
)
from torch import Tensor

from hires_gan.ops import backend, bias_act, epilogue, upfirdn2d

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
GIB = 2**30


@pytest.fixture(autouse=True)
def native() -> Iterator[None]:
    with backend("native"):
        yield


@pytest.fixture
def room() -> Iterator[None]:
    free, _ = torch.cuda.mem_get_info()
    if free < 40 * GIB:
        pytest.skip(f"needs 40 GiB of free GPU memory, and {free / GIB:.1f} GiB are free")
    torch.cuda.empty_cache()
    yield
    torch.cuda.empty_cache()


RESAMPLED = [(1, 1, (4,)), (1, 2, (4, 4)), (2, 1, (4,)), (1, 1, (5,)), (3, 3, (5, 3))]
HUGE = (1, 33, 8192, 8192)  # 2.2 billion elements: 4.1 GiB of halves
BLOCKS = ((0, 0, 0), (16, 4096, 4096), (31, 8150, 8150), (32, 8150, 0), (32, 8150, 8150))


def huge(layout: str, dtype: torch.dtype = torch.float16) -> Tensor:
    """Values that differ from place to place without a period that a wrong index could hide in."""
    order = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    x = torch.empty(HUGE, dtype=dtype, device="cuda", memory_format=order)
    generator = torch.Generator("cuda").manual_seed(0)
    for channel in range(HUGE[1]):
        plane = torch.randn(HUGE[2:], generator=generator, device="cuda", dtype=torch.float32)
        x[0, channel].copy_(plane)
    return x


def blocks(side: int = 40) -> Iterator[tuple[int, slice, slice]]:
    for channel, row, column in BLOCKS:
        yield channel, slice(row, row + side), slice(column, column + side)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("up", "down", "taps"), RESAMPLED, ids=str)
def test_upfirdn2d_beyond_two_billion_elements(room, layout, up, down, taps):
    """Crops of the result are compared with the op on crops of the image; the last lie beyond 2^31."""
    x = huge(layout)
    if up == 2:  # the result is the large one
        x = x[:, :, :4128, :4128].contiguous(
            memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format
        )
    case = Resampling((1, 1, 1, 1), taps, (up, up), (down, down), (6, 6, 6, 6), seed=3)
    filters = drawn(taps, 3, torch.float32, "cuda")
    y = upfirdn2d(x, filters, **case.arguments())
    assert max(y.numel(), x.numel()) > 2**31
    fh, fw = taps[0], taps[-1]
    height, width = y.shape[2:]
    for channel in (0, 17, 31, 32):
        for row, column in ((0, 0), (height // 2, width // 3), (height - 30, width - 30), (height - 30, 0)):
            # Input rows that these 30 output rows meet, on the zero-stuffed grid, padded by hand.
            top, left = row * down - 6, column * down - 6
            first_row, first_column = -(-top // up), -(-left // up)
            rows = range(first_row, (top + 29 * down + fh - 1) // up + 1)
            columns = range(first_column, (left + 29 * down + fw - 1) // up + 1)
            crop = torch.zeros(1, 1, len(rows), len(columns), dtype=torch.float64)
            inside_rows = [r for r in rows if 0 <= r < x.shape[2]]
            inside_columns = [c for c in columns if 0 <= c < x.shape[3]]
            piece = x[0, channel, inside_rows[0] : inside_rows[-1] + 1, inside_columns[0] : inside_columns[-1] + 1]
            at_row, at_column = inside_rows[0] - rows[0], inside_columns[0] - columns[0]
            crop[0, 0, at_row : at_row + piece.shape[0], at_column : at_column + piece.shape[1]] = exact(piece)
            before_y, before_x = first_row * up - top, first_column * up - left
            part = Resampling(tuple(crop.shape), taps, (up, up), (down, down),
                              (before_x, fw + down * 30, before_y, fh + down * 30))  # fmt: skip
            expected = upfirdn2d_definition(crop, exact(filters), part)[:, :, :30, :30]
            magnitude = magnitude_of(crop, exact(filters), part)[:, :, :30, :30]
            found = y[:, channel : channel + 1, row : row + 30, column : column + 30]
            assert excess(found, expected, magnitude) <= 1, (channel, row, column)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_bias_act_beyond_two_billion_elements(room, layout):
    x = huge(layout).requires_grad_()
    b = drawn((33,), 1, torch.float32, "cuda").requires_grad_()
    y = bias_act(x, b, act="lrelu")
    dx, db = torch.autograd.grad(y, (x, b), torch.ones((), dtype=y.dtype, device="cuda").expand_as(y))
    for channel, rows, columns in blocks():
        v = exact(x[:, channel : channel + 1, rows, columns])
        bias = exact(b)[channel : channel + 1]
        expected = bias_act_definition(v, bias, 1, "lrelu")
        assert excess(y[:, channel : channel + 1, rows, columns].detach(), expected, 2 * (v.abs() + bias.abs())) <= 1
        slopes = torch.where(v + bias > 0, 1.0, 0.2) * 2**0.5
        assert excess(dx[:, channel : channel + 1, rows, columns], slopes, slopes) <= 1
    for channel in (0, 16, 32):
        positive = float((x[0, channel].detach().float() + b[channel].detach() > 0).sum(dtype=torch.int64))
        whole = 2**0.5 * (positive + 0.2 * (HUGE[2] * HUGE[3] - positive))
        assert abs(float(db[channel]) - whole) <= 1e-5 * whole
    del y, dx
    last = bias_act(x.detach(), b.detach(), act="swish", clamp=1.0)[:, 32:, 8150:, 8150:]
    v, bias = exact(x[:, 32:, 8150:, 8150:]), exact(b)[32:]
    expected = bias_act_definition(v, bias, 1, "swish")
    assert excess(last, expected.clamp(-1, 1), 2 * (v.abs() + bias.abs())) <= 1


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_epilogue_beyond_two_billion_elements(room, layout):
    x = huge(layout).requires_grad_()
    small = {
        "demodulation": drawn((1, 33), 1, torch.float32, "cuda"),
        "noise": drawn((1, 1, *HUGE[2:]), 2, torch.float16, "cuda"),
        "noise_strength": drawn((), 3, torch.float32, "cuda"),
        "b": drawn((33,), 4, torch.float32, "cuda"),
    }
    y = epilogue(x, **small)
    (dx,) = torch.autograd.grad(y, x, torch.ones((), dtype=y.dtype, device="cuda").expand_as(y))
    for channel, rows, columns in blocks():
        here = slice(channel, channel + 1)
        v = exact(x[:, here, rows, columns]).requires_grad_()
        extra = {
            "demodulation": exact(small["demodulation"])[:, here],
            "noise": exact(small["noise"][:, :, rows, columns]),
            "noise_strength": exact(small["noise_strength"]),
            "b": exact(small["b"])[here],
        }
        expected = epilogue_definition(v, extra, "lrelu")
        (slopes,) = torch.autograd.grad(expected.sum(), v)
        sizes = epilogue_definition(v.abs(), {k: value.abs() for k, value in extra.items()}, "linear", gain=2**0.5)
        assert excess(y[:, here, rows, columns].detach(), expected.detach(), sizes.detach()) <= 1
        assert excess(dx[:, here, rows, columns], slopes, slopes.abs()) <= 1
