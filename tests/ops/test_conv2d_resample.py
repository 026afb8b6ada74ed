"""Every fused way of `conv2d_resample` against the composition that defines it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

import literal
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hires_gan.ops import conv2d_resample, setup_filter

FILTERS = {
    "none": None,
    "4 taps": torch.tensor([1.0, 3.0, 2.0, 1.5], dtype=torch.float64) / 4,
    "5x3 taps": torch.linspace(-1, 2, 15, dtype=torch.float64).reshape(5, 3),
    "2 taps": torch.tensor([0.25, 0.75], dtype=torch.float64),
}


def four(padding: int | Sequence[int]) -> list[int]:
    pads = [padding] * 4 if isinstance(padding, int) else list(padding)
    return [pads[0], pads[0], pads[1], pads[1]] if len(pads) == 2 else pads


def composed(
    x: Tensor,
    w: Tensor,
    f: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int | Sequence[int] = 0,
    groups: int = 1,
    flip_weight: bool = True,
    flip_filter: bool = False,
) -> tuple[Tensor, Tensor]:
    """Enlarge, convolve, reduce, one after the other, from the literal definition; and the sum of magnitudes."""
    high, wide = (1, 1) if f is None else (f.shape[0], f.shape[-1])
    x0, x1, y0, y1 = four(padding)
    if up > 1:
        x0, x1 = x0 + (wide + up - 1) // 2, x1 + (wide - up) // 2
        y0, y1 = y0 + (high + up - 1) // 2, y1 + (high - up) // 2
    if down > 1:
        x0, x1 = x0 + (wide - down + 1) // 2, x1 + (wide - down) // 2
        y0, y1 = y0 + (high - down + 1) // 2, y1 + (high - down) // 2
    first = f if up > 1 else None
    pads, flips = (x0, x1, y0, y1), flip_filter
    y, size = literal.upfirdn2d(x, first, (up, up), (1, 1), pads, flips, up * up)
    w = w if flip_weight else w.flip(2, 3)
    y, size = (F.conv2d(torch.from_numpy(a), b, groups=groups).numpy() for a, b in ((y, w), (size, w.abs())))
    if down > 1:
        y = literal.upfirdn2d(y, f, (1, 1), (down, down), (0, 0, 0, 0), flips)[0]
        size = literal.upfirdn2d(size, None if f is None else f.abs(), (1, 1), (down, down), (0, 0, 0, 0), flips)[0]
    return torch.from_numpy(y), torch.from_numpy(size)


def inputs(
    kernel: tuple[int, int], groups: int = 1, channels: int = 4, size: tuple[int, int] = (7, 9)
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(kernel[0] * 10 + kernel[1] + groups)
    x = torch.randn(2, channels, *size, dtype=torch.float64, generator=generator)
    w = torch.randn(6, channels // groups, *kernel, dtype=torch.float64, generator=generator)
    return x, w


def check(x: Tensor, w: Tensor, **options: Any) -> None:
    expected, size = composed(x, w, **options)
    for layout in (torch.contiguous_format, torch.channels_last):
        found = conv2d_resample(x.contiguous(memory_format=layout), w, **options)
        assert found.shape == expected.shape, options
        assert ((found - expected).abs() <= 1e-12 * size).all(), options


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(("up", "down"), itertools.product([1, 2, 3], repeat=2))
def test_every_way_equals_the_composition(kernel: int, up: int, down: int) -> None:
    forms = [kernel // 2, [3, 1], [2, 1, 0, 3], [-1, 4, 3, -2], [5, 5, 6, 4]]
    for name, groups, flip_weight in itertools.product(FILTERS, (1, 2), (True, False)):
        x, w = inputs((kernel, kernel), groups)
        padding = forms[(list(FILTERS).index(name) + groups + kernel) % len(forms)]
        for pads in (kernel // 2, padding):
            check(
                x, w, f=FILTERS[name], up=up, down=down, padding=pads, groups=groups, flip_weight=flip_weight,
                flip_filter=flip_weight == (groups == 1),
            )  # fmt: skip


@pytest.mark.parametrize(
    "padding", [0, 1, [1, 2], [0, 0, 1, 1], [1, 0, 0, 2], [-1, -1, 0, 0], [-2, 3, -1, 2], [9, 9, 8, 9]]
)
@pytest.mark.parametrize(("up", "down"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_every_form_of_padding(padding: Any, up: int, down: int) -> None:
    for kernel in ((3, 3), (1, 1), (1, 3), (4, 2)):
        x, w = inputs(kernel)
        for f in FILTERS.values():
            check(x, w, f=f, up=up, down=down, padding=padding)


def test_a_padding_that_keeps_the_size() -> None:
    f = setup_filter([1, 3, 3, 1])
    x, w = torch.randn(1, 4, 8, 8), torch.randn(6, 4, 3, 3)
    sizes = {(1, 1): 8, (2, 1): 16, (1, 2): 4, (4, 1): 32, (2, 2): 8}
    for (up, down), size in sizes.items():
        assert conv2d_resample(x, w, f, up, down, padding=1).shape == (1, 6, size, size)
        assert conv2d_resample(x, w[:, :, :1, :1], f, up, down).shape == (1, 6, size, size)


@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        ((1, 1), {"down": 2, "padding": 1}),
        ((1, 1), {"up": 2}),
        ((3, 3), {"down": 2, "padding": 1}),
        ((3, 3), {"up": 2, "padding": 1}),
        ((2, 3), {"up": 2, "down": 2, "padding": [1, 0, 2, 1], "flip_weight": False}),
        ((3, 3), {"padding": 1}),
        ((3, 3), {"padding": [1, -1, 0, 2]}),
    ],
)
def test_gradients(kernel: tuple[int, int], options: dict[str, Any]) -> None:
    x, w = (t.requires_grad_() for t in inputs(kernel, groups=2, channels=2, size=(4, 3)))
    run = lambda x, w: conv2d_resample(x, w, FILTERS["4 taps"], groups=2, **options)  # noqa: E731
    assert torch.autograd.gradcheck(run, (x, w))
    assert torch.autograd.gradgradcheck(run, (x, w))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_dtype_is_kept(dtype: torch.dtype) -> None:
    x, w = (t.to(dtype) for t in inputs((3, 3)))
    for up, down in ((1, 1), (2, 1), (1, 2)):
        f = setup_filter([1, 3, 3, 1])
        found = conv2d_resample(x, w, f, up, down, padding=1)
        assert found.dtype == dtype
        expected, size = composed(x.double(), w.double(), f.double(), up, down, 1)
        assert ((found - expected).abs() <= 4 * torch.finfo(dtype).eps * size).all()


def test_no_sample_no_work() -> None:
    x, w = inputs((3, 3))
    for up, down in ((1, 1), (2, 1), (1, 2)):
        assert conv2d_resample(x[:0], w, FILTERS["4 taps"], up, down, padding=1).shape[:2] == (0, 6)


def test_it_compiles_in_one_graph() -> None:
    x, w = (t.float() for t in inputs((3, 3)))
    f = setup_filter([1, 3, 3, 1])

    def layers(x: Tensor, w: Tensor) -> Tensor:
        y = conv2d_resample(x, w, f, up=2, padding=1)
        return conv2d_resample(y, w.transpose(0, 1), f, down=2, padding=1)

    torch.compiler.reset()
    found = torch.compile(layers, fullgraph=True, backend="aot_eager")(x, w)
    assert torch.allclose(found, layers(x, w), rtol=1e-5, atol=1e-4)


IMAGE = torch.ones(1, 4, 5, 5)
WEIGHT = torch.ones(6, 4, 3, 3)


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"x": torch.ones(4, 5, 5)}, ValueError, "x has 3 dimensions"),
        ({"x": [1.0]}, TypeError, "x is a list"),
        ({"x": torch.ones(1, 4, 5, 5, dtype=torch.int64)}, TypeError, "x has the dtype int64"),
        ({"w": torch.ones(6, 4, 3)}, ValueError, "w has the shape [6, 4, 3]; [cout, cin / groups, kh, kw] is allowed"),
        ({"w": torch.ones(6, 4, 0, 3)}, ValueError, "none of them 0"),
        ({"w": 3}, TypeError, "w is a int; a tensor is wanted"),
        ({"w": WEIGHT.half()}, TypeError, "w has the dtype float16; for x of float32, the same is allowed"),
        ({"w": torch.ones(6, 3, 3, 3)}, ValueError, "for 3 channels in 1 groups, and x has 4"),
        ({"groups": 2}, ValueError, "for 8 channels in 2 groups, and x has 4"),
        ({"w": torch.ones(5, 2, 3, 3), "groups": 2}, ValueError, "with cout a multiple of groups"),
        ({"w": WEIGHT.to("meta")}, ValueError, "w is on meta and x on cpu"),
        ({"groups": 0}, ValueError, "groups is 0; a whole number of 1 or more is allowed"),
        ({"up": 0}, ValueError, "up is 0; a whole number of 1 or more is allowed"),
        ({"up": 1.5}, ValueError, "up is 1.5;"),
        ({"up": [2, 2]}, ValueError, "up is [2, 2];"),
        ({"up": True}, ValueError, "up is True;"),
        ({"down": -1}, ValueError, "down is -1;"),
        ({"padding": [1, 2, 3]}, ValueError, "padding is [1, 2, 3];"),
        ({"padding": 0.5}, ValueError, "padding is 0.5;"),
        ({"padding": -2}, ValueError, "too short for a kernel of 3"),
        ({"padding": -2, "up": 2, "w": torch.ones(6, 4, 9, 9)}, ValueError, "leaves too little: a side of 5, up 2"),
        ({"padding": -3, "down": 2, "w": torch.ones(6, 4, 1, 1)}, ValueError, "down 2, is too short for a kernel of 1"),
        ({"f": [1.0, 1.0]}, TypeError, "f is a list; a tensor or None is wanted"),
        ({"f": torch.ones(1, 1, 1)}, ValueError, "f has the shape [1, 1, 1]"),
    ],
)  # fmt: skip
def test_bad_input_is_named(changes: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=re.escape(says)):
        conv2d_resample(**{"x": IMAGE, "w": WEIGHT, **changes})


@pytest.mark.parametrize(("up", "down"), itertools.product([1, 2, 3], repeat=2))
@pytest.mark.parametrize("kernel", [1, 3, 4])
def test_it_is_refused_exactly_where_nothing_would_be_left(kernel: int, up: int, down: int) -> None:
    x, w = inputs((kernel, kernel), size=(3, 9))
    for f, padding in itertools.product(FILTERS.values(), range(-6, 2)):
        try:
            expected, _ = composed(x, w, f, up, down, [2, padding])
        except (AssertionError, RuntimeError):
            with pytest.raises(ValueError, match="padding leaves too little"):
                conv2d_resample(x, w, f, up, down, [2, padding])
        else:
            assert conv2d_resample(x, w, f, up, down, [2, padding]).shape == expected.shape
