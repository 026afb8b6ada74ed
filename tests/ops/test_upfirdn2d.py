"""upfirdn2d against the reference and the definition: random cases, the specialised cases, gradients to any order."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator
from dataclasses import replace

import pytest
import torch
from ops_matrix import (
    DTYPES,
    NAMES,
    Resampling,
    arranged,
    assert_layout_kept,
    drawn,
    exact,
    excess,
    magnitude_of,
    random_resampling,
    selection,
    upfirdn2d_definition,
)
from torch import Tensor

from hires_gan.ops import backend, upfirdn2d

HALVES = (torch.float16, torch.bfloat16)


def reference(x: Tensor, f: Tensor | None, case: Resampling) -> Tensor:
    """The oracle: plain torch in float64 on the very inputs."""
    with backend("reference"):
        return upfirdn2d(exact(x), exact(f), **case.arguments())


def failures(cases: Iterable[Resampling], dtype: torch.dtype, device: torch.device) -> list[str]:
    """What is wrong with each case, in words; empty if nothing is."""
    wrong = []
    for case in cases:
        x, f = case.inputs(dtype, device)
        y = upfirdn2d(x, f, **case.arguments())
        assert y.dtype == dtype
        assert y.device.type == device.type
        times = excess(y, reference(x, f, case), magnitude_of(exact(x), exact(f), case))
        if not times <= 1:
            wrong.append(f"{times:.3g} times the tolerance, {NAMES[dtype]}: {case}")
        assert_layout_kept(y, x, f"{NAMES[dtype]}: {case}")
    return wrong


@pytest.mark.parametrize("part", range(5))
@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES.get)
def test_a_thousand_random_cases(device, dtype, part):
    first = 1000 * (1 + DTYPES.index(dtype)) + 50 * part
    assert failures(map(random_resampling, range(first, first + 50)), dtype, device) == []


def test_the_reference_is_the_definition():
    wrong = []
    for case in map(random_resampling, range(300)):
        x, f = case.inputs(torch.float64, "cpu")
        expected = upfirdn2d_definition(x, f, case)
        if not excess(reference(x, f, case), expected, magnitude_of(x, f, case)) <= 1:
            wrong.append(str(case))
    assert wrong == []


PADS = range(-3, 16)


def specialised(up: int, down: int, taps: tuple[int, ...], layout: str, on_gpu: bool) -> Iterator[Resampling]:
    """Every padding from -3 to 15 on each of the four sides, with widths that no tile divides."""
    draw = random.Random(f"{up} {down} {taps} {layout}")
    widths = (9, 15, 16, 17, 23) if not on_gpu else (16, 31, 33, 63, 64, 65, 70, 127, 130)
    for number, pads in enumerate(zip(*(draw.sample(PADS, len(PADS)) for _ in range(4)), strict=True)):
        height, width = draw.choice(widths), draw.choice(widths)
        case = Resampling(
            shape=(1 + number % 2, (3, 8, 1, 5, 16, 4, 33)[number % 7], height, width),
            taps=taps,
            up=(up, up),
            down=(down, down),
            padding=pads,
            flip=number % 2 == 0,
            gain=(1.0, 4.0, -0.5)[number % 3],
            layout=layout,
            seed=number,
        )
        yield case if min(case.output()) >= 1 else replace(case, shape=(*case.shape[:2], 23, 29))


@pytest.mark.parametrize("dtype", (torch.float32, *HALVES), ids=NAMES.get)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("taps", [(4,), (12,), (4, 4), (12, 12)], ids=str)
@pytest.mark.parametrize("factors", [(2, 1), (1, 2), (1, 1)], ids=["up2", "down2", "same"])
def test_specialised_cases_with_every_padding(device, dtype, layout, taps, factors):
    assert failures(specialised(*factors, taps, layout, device.type == "cuda"), dtype, device) == []


@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES.get)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "shifted", "shifted_channels_last", "narrowed"])
def test_no_tap_is_dropped_whatever_their_number(device, dtype, layout):
    """1-to-1 with every tap count, separable and 2-D, square and not, for every width of a vector of channels."""
    cases = []
    for n in range(1, 13):
        for number, taps in enumerate([(n,), (n, n), (n, 13 - n)]):
            channels = (1, 3, 4, 8, 16, 32)[(n + number) % 6]
            padding = (n // 2, (n - 1) // 2, n // 2, (n - 1) // 2)
            cases.append(Resampling((2, channels, 13, 14), taps, padding=padding, layout=layout, seed=n))
    assert failures(cases, dtype, device) == []


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6, 7, 8, 9, 12, 15, 16, 24, 31, 32, 33, 40, 64])
def test_every_number_of_channels(device, channels):
    cases = [
        Resampling((2, channels, 9, 10), taps, factors[0], factors[1], (2, 1, 2, 1), layout=layout, seed=channels)
        for taps in ((4,), (4, 4), (3,))
        for factors in (((2, 2), (1, 1)), ((1, 1), (2, 2)), ((1, 1), (1, 1)))
        for layout in ("contiguous", "channels_last", "shifted_channels_last")
    ]
    for dtype in (torch.float32, torch.float16):
        assert failures(cases, dtype, device) == []


def test_up_to_64_taps(device):
    cases = [
        Resampling((1, 2, 20, 20), taps, (2, 1), (1, 2), (n, n, n, n), seed=n)
        for n in (13, 16, 24, 31, 33, 48, 63, 64)
        for taps in ((n,), (n, 3), (2, n))
    ]
    for dtype in (torch.float64, torch.float32):
        assert failures(cases, dtype, device) == []


def test_factors_of_one_axis_only_and_large_ones(device):
    cases = [
        Resampling((1, 3, 11, 12), taps, up, down, (3, 2, 1, 4), layout=layout, seed=number)
        for number, (up, down) in enumerate([((2, 1), (1, 1)), ((1, 2), (1, 1)), ((1, 1), (2, 1)), ((1, 1), (1, 2)),
                                             ((2, 1), (1, 2)), ((1, 2), (2, 1)), ((2, 2), (2, 2)), ((9, 7), (5, 8)),
                                             ((1, 1), (30, 30)), ((17, 1), (1, 13))])
        for taps in ((4,), (4, 4), (12,))
        for layout in ("contiguous", "channels_last")
    ]  # fmt: skip
    assert failures(cases, torch.float32, device) == []


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_images_of_several_tiles(device, layout):
    cases = [
        Resampling(shape, taps, (up, up), (down, down), (3, 2, 2, 3), layout=layout, seed=7)
        for shape in ((1, 2, 67, 131), (1, 9, 131, 35), (1, 1, 1, 300), (1, 1, 300, 1))
        for taps in ((4,), (12,), (4, 4))
        for up, down in ((2, 1), (1, 2), (1, 1))
        if shape[2] * up + 5 >= taps[0] and shape[3] * up + 5 >= taps[0]
    ]
    assert failures(cases, torch.float32, device) == []


def test_a_filter_of_another_precision_is_used_in_that_of_the_arithmetic(device):
    case = Resampling((1, 2, 8, 8), (4,), (2, 2), padding=(2, 1, 2, 1))
    for dtype, taps in itertools.product((torch.float64, torch.float32, torch.float16), DTYPES):
        x, f = case.inputs(dtype, device)
        f = f.to(taps)
        working = torch.float64 if dtype == torch.float64 else torch.float32
        expected = upfirdn2d(x, f.to(working), **case.arguments())
        assert torch.equal(upfirdn2d(x, f, **case.arguments()), expected)


def test_the_short_ways_to_write_the_arguments(device):
    x, f = drawn((1, 2, 7, 9), 0, torch.float32, device), drawn((3,), 1, torch.float32, device)
    whole = upfirdn2d(x, f, up=[2, 2], down=[3, 3], padding=[1, 1, 1, 1])
    assert torch.equal(upfirdn2d(x, f, up=2, down=3, padding=1), whole)
    assert torch.equal(upfirdn2d(x, f, (2, 2), (3, 3), (1, 1)), whole)
    assert torch.equal(upfirdn2d(x, f, padding=[3, 1]), upfirdn2d(x, f, padding=[3, 3, 1, 1])), (
        "padding [x, y] is for both sides of each axis"
    )
    assert torch.equal(upfirdn2d(x, None), x)
    assert torch.equal(upfirdn2d(x, torch.ones((), device=device).reshape(1, 1)), x)
    strided = upfirdn2d(x, f.repeat(2)[::2], padding=2)
    assert torch.equal(strided, upfirdn2d(x, f.repeat(2)[::2].contiguous(), padding=2))
    square = drawn((3, 4), 2, torch.float32, device)
    assert torch.equal(upfirdn2d(x, square.T, padding=2), upfirdn2d(x, square.T.contiguous(), padding=2))


ANSWERS = {
    "A": ([1.0, 2.0], {}, [[18.0]]),
    "B": ([1.0, 2.0], {"flip_filter": True}, [[27.0]]),
    "F": ([1.0, 2.0, 3.0], {"up": 3, "down": 2, "padding": [2, 1, 0, -1]}, [[3.0, 9, 12, 0], [6, 18, 16, 0]]),
    "C": ([0.125, 0.375, 0.375, 0.125], {"up": 2, "padding": [2, 1, 2, 1], "gain": 4},
          [[0.5625, 0.9375, 1.3125, 1.125], [1.125, 1.75, 2.25, 1.875],
           [1.875, 2.75, 3.25, 2.625], [1.6875, 2.4375, 2.8125, 2.25]]),
    "E": ([0.125, 0.375, 0.375, 0.125], {"padding": [2, 1, 2, 1]}, [[0.4375, 0.75], [0.84375, 1.40625]]),
}  # fmt: skip


@pytest.mark.parametrize("letter", ANSWERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES.get)
def test_known_answers(device, dtype, letter):
    taps, options, answer = ANSWERS[letter]
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]], dtype=dtype, device=device)
    f = torch.tensor(taps, device=device)
    expected = torch.tensor([[answer]], dtype=dtype, device=device)
    for filters in (f, f.outer(f)):
        torch.testing.assert_close(upfirdn2d(x, filters, **options), expected)


def test_known_answer_of_downsampling(device):
    x = torch.arange(16.0, device=device).reshape(1, 1, 4, 4)
    f = torch.tensor([0.125, 0.375, 0.375, 0.125], device=device)
    y = upfirdn2d(x, f, down=2, padding=1)
    torch.testing.assert_close(y.flatten().tolist(), [2.734375, 3.9375, 7.546875, 8.75])


# Gradients


def small_case(seed: int) -> Resampling:
    """With dozens of pixels, not hundreds: gradgradcheck computes whole Jacobians."""
    draw = random.Random(seed)
    while True:
        case = random_resampling(seed, largest=4, batches=(1, 2))
        case = replace(case, shape=(case.shape[0], draw.choice((1, 2)), *case.shape[2:]))
        height, width = case.output()
        if case.gain and height * width <= 30 and case.layout != "expanded":
            return case
        seed += 100_003


@pytest.mark.parametrize("seed", range(12))
def test_gradcheck_and_gradgradcheck(device, seed):
    case = small_case(seed)
    x, f = case.inputs(torch.float64, device)
    x = x.detach().requires_grad_()

    def op(value: Tensor) -> Tensor:
        return upfirdn2d(value, f, **case.arguments())

    assert torch.autograd.gradcheck(op, x)
    assert torch.autograd.gradgradcheck(op, x)


def along(output: Tensor, wanted: Tensor, way: Tensor) -> Tensor:
    """The gradient; zero where the padding is so large that nothing depends on the image."""
    if not output.requires_grad:
        return torch.zeros_like(wanted)
    return torch.autograd.grad(output, wanted, way, create_graph=True, materialize_grads=True)[0]


def derivatives(x: Tensor, dy: Tensor, v: Tensor, op) -> dict[str, Tensor]:
    """y; its gradient along dy; the gradient of (dx . v) by dy, and that of (ddy . dy) by v: three orders."""
    x, dy, v = (value.detach().requires_grad_() for value in (x, dy, v))
    y = op(x)
    dx = along(y, x, dy)
    ddy = along(dx, dy, v)
    third = along(ddy, v, dy)
    return {"y": y.detach(), "dx": dx.detach(), "ddy": ddy.detach(), "third": third.detach()}


def gradient_failures(seeds: Iterable[int], dtype: torch.dtype, device: torch.device) -> list[str]:
    wrong = []
    for seed in seeds:
        case = random_resampling(seed, largest=14)
        x, f = case.inputs(dtype, device)
        dy = drawn((*case.shape[:2], *case.output()), seed + 1, dtype, device)
        dy = arranged(dy, random.Random(seed).choice(("contiguous", "channels_last", "sliced", "shifted")))
        v = drawn(case.shape, seed + 2, dtype, device)
        found = derivatives(x, dy, v, lambda value, f=f, case=case: upfirdn2d(value, f, **case.arguments()))
        inputs = [exact(value) for value in (x, dy, v)]
        with backend("reference"):
            expected = derivatives(
                *inputs, lambda value, f=f, case=case: upfirdn2d(value, exact(f), **case.arguments())
            )
        sizes = derivatives(
            *(value.abs() for value in inputs),
            lambda value, f=f, case=case: magnitude_of(value, exact(f), case),
        )
        for name, value in found.items():
            times = excess(value, expected[name], sizes[name])
            if not times <= 1:
                wrong.append(f"{name}: {times:.3g} times the tolerance, {NAMES[dtype]}: {case}")
        assert_layout_kept(found["dx"], dy, f"the gradient follows its incoming gradient: {case}")
    return wrong


@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES.get)
def test_backward_double_and_triple_backward_of_random_cases(device, dtype):
    first = 20_000 + 1000 * DTYPES.index(dtype)
    count = 100 if dtype == torch.float32 else 30
    assert gradient_failures(range(first, first + count), dtype, device) == []


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradients_of_the_specialised_cases(device, layout):
    """Their gradients are other specialised cases, and the memory format goes through all orders."""
    for (up, down), taps in itertools.product(((2, 1), (1, 2), (1, 1)), ((4,), (12,), (4, 4), (12, 12))):
        for dtype in (torch.float32, torch.float16):
            case = Resampling((2, 8, 14, 18), taps, (up, up), (down, down), (5, 4, 5, 4), layout=layout, seed=3)
            x, f = case.inputs(dtype, device)
            x = x.detach().requires_grad_()
            y = upfirdn2d(x, f, **case.arguments())
            dy = drawn(y.shape, 5, dtype, device).to(
                memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format
            )
            (dx,) = torch.autograd.grad(y, x, dy)
            leaf = exact(x).requires_grad_()
            (expected,) = torch.autograd.grad(upfirdn2d_definition(leaf, exact(f), case), leaf, exact(dy))
            size = exact(x).abs().requires_grad_()
            (magnitude,) = torch.autograd.grad(magnitude_of(size, exact(f), case), size, exact(dy).abs())
            assert excess(dx, expected, magnitude) <= 1, f"{NAMES[dtype]}: {case}"
            assert_layout_kept(y, x, str(case))
            assert_layout_kept(dx, x, str(case))


def test_an_expanded_gradient_is_right(device):
    case = Resampling((2, 3, 6, 7), (4,), (2, 2), padding=(2, 1, 2, 1), layout="channels_last")
    x, f = case.inputs(torch.float32, device)
    x = x.detach().requires_grad_()
    y = upfirdn2d(x, f, **case.arguments())
    (expanded,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    (dense,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert torch.equal(expanded, dense)


def test_values_that_are_not_finite_reach_what_a_tap_touches_and_nothing_else(device):
    bad = (float("nan"), float("inf"), -float("inf"))
    for seed in range(60):
        case = replace(random_resampling(40_000 + seed, largest=16, batches=(1,)), gain=1.0, layout="contiguous")
        if seed % 2:
            case = replace(case, taps=((4,), (12,), (4, 4))[seed % 3], up=(1 + seed // 2 % 2,) * 2, down=(1, 1),
                           padding=(9, 8, 9, 8), layout=("contiguous", "channels_last")[seed // 2 % 2])  # fmt: skip
        x, f = case.inputs(torch.float32, device)
        f = None if f is None else f.abs() + 0.1
        draw = random.Random(seed)
        place = (0, draw.randrange(x.shape[1]), draw.randrange(x.shape[2]), draw.randrange(x.shape[3]))
        x[place] = bad[seed % 3]
        mark = torch.zeros(x.shape, dtype=torch.float64)
        mark[place] = 1
        touched = upfirdn2d_definition(mark, None if f is None else torch.ones_like(exact(f)), case) > 0
        y = upfirdn2d(x, f, **case.arguments()).cpu()
        assert torch.equal(~y.isfinite(), touched), str(case)


def test_output_of_padding_alone_is_zero(device):
    case = Resampling((1, 2, 3, 3), (2,), padding=(-3, 12, 0, 0))
    x, f = case.inputs(torch.float32, device)
    assert not upfirdn2d(x, f, **case.arguments()).any()


def test_an_empty_batch_has_an_empty_gradient(device):
    x = torch.zeros(0, 3, 8, 8, device=device, requires_grad=True)
    y = upfirdn2d(x, torch.ones(4, device=device), up=2, padding=2)
    assert y.shape == (0, 3, 17, 17)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape


def test_the_selection_matrix_is_the_formula():
    """The second witness itself, by loops: y[m] = sum over t of g[t] u[m D + t - p0]."""
    for length, taps, up, down, before, after in ((5, 4, 3, 2, 2, -1), (4, 3, 1, 3, -1, 5), (3, 1, 4, 1, 0, 0)):
        signal = torch.arange(1.0, length + 1, dtype=torch.float64)
        g = drawn((taps,), 0)
        matrix = torch.einsum("t,tmi->mi", g, selection(length, taps, up, down, before, after))
        stuffed = [float(signal[j // up]) if j % up == 0 else 0.0 for j in range(length * up)]
        out = (length * up + before + after - taps) // down + 1
        for m in range(out):
            at = [m * down + t - before for t in range(taps)]
            value = sum(float(g[t]) * stuffed[j] for t, j in enumerate(at) if 0 <= j < len(stuffed))
            assert abs(value - float(matrix[m] @ signal)) < 1e-12
