"""The reference against the literal definitions, published answers, and the properties that the mathematics gives."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

import literal
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hires_gan.ops import reference

SQUARE = [[1.0, 2.0], [3.0, 4.0]]
BINOMIAL = [0.125, 0.375, 0.375, 0.125]
SYM6 = [  # the low-pass filter of the symlet with six vanishing moments, as published
    *(0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633),
    *(0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252),
    *(-0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148),
]
SMOOTH = ("tanh", "sigmoid", "elu", "selu", "softplus", "swish")


@pytest.fixture(params=["convolved", "summed"])
def way(request: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of writing upfirdn2d, on the CPU."""
    if request.param == "summed":
        monkeypatch.setattr(reference, "_convolved", reference._summed)
        monkeypatch.setattr(reference, "_JOINT_TAPS_CONVOLVED", reference._JOINT_TAPS_SUMMED)
    return request.param


@dataclass(frozen=True)
class Case:
    """Arguments of upfirdn2d, as the reference and the literal definition take them."""

    f: Tensor | None
    up: tuple[int, int] = (1, 1)
    down: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    flip_filter: bool = False
    gain: float = 1.0

    def run(self, x: Tensor) -> Tensor:
        return reference.upfirdn2d(x, self.f, self.up, self.down, self.padding, self.flip_filter, self.gain)

    def literally(self, x: Tensor) -> tuple[np.ndarray, np.ndarray]:
        f = None if self.f is None else self.f.double().numpy()
        image = x.detach().double().contiguous().numpy()
        return literal.upfirdn2d(image, f, self.up, self.down, self.padding, self.flip_filter, self.gain)

    def taps(self) -> tuple[int, int]:
        """Along (x, y)."""
        return (1, 1) if self.f is None else (self.f.shape[-1], self.f.shape[0])

    def fits(self, height: int, width: int) -> bool:
        x0, x1, y0, y1 = self.padding
        n = self.taps()
        return width * self.up[0] + x0 + x1 >= n[0] and height * self.up[1] + y0 + y1 >= n[1]

    def adjoint(self, height: int, width: int) -> Case:
        """The operator that is this one's gradient."""
        n = self.taps()
        pads: list[int] = []
        for axis, size in ((0, width), (1, height)):
            p0, p1 = self.padding[2 * axis : 2 * axis + 2]
            stuffed = size * self.up[axis]
            outputs = (stuffed + p0 + p1 - n[axis]) // self.down[axis] + 1
            pads += [n[axis] - 1 - p0, stuffed - outputs * self.down[axis] + p0 - self.up[axis] + 1]
        return Case(self.f, self.down, self.up, tuple(pads), not self.flip_filter, self.gain)  # type: ignore[arg-type]


def drawn_case(rng: random.Random) -> tuple[Case, Tensor]:
    """A random case and an image that it fits, in float64."""
    while True:
        sizes = rng.choice([None, (rng.randint(1, 12),), (rng.randint(1, 12), rng.randint(1, 12))])
        case = Case(
            f=None if sizes is None else normal(rng, *sizes),
            up=(rng.randint(1, 4), rng.randint(1, 4)),
            down=(rng.randint(1, 4), rng.randint(1, 4)),
            padding=tuple(rng.randint(-6, 9) for _ in range(4)),  # type: ignore[arg-type]
            flip_filter=rng.random() < 0.5,
            gain=rng.choice([1.0, 4.0, 0.0, rng.uniform(-2, 2)]),
        )
        x = normal(rng, rng.randint(1, 2), rng.randint(1, 3), rng.randint(1, 7), rng.randint(1, 7))
        if case.fits(*x.shape[2:]):
            return case, x.contiguous(memory_format=rng.choice([torch.contiguous_format, torch.channels_last]))


def normal(rng: random.Random, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def assert_close(found: Tensor, expected: np.ndarray, allowed: np.ndarray) -> None:
    assert tuple(found.shape) == expected.shape
    error = np.abs(found.detach().double().numpy() - expected)
    assert (error <= allowed).all(), f"{(error - allowed).max()} beyond what is allowed"


KNOWN = {
    "convolution": (Case(torch.tensor([1.0, 2.0])), SQUARE, [[18.0]]),
    "correlation": (Case(torch.tensor([1.0, 2.0]), flip_filter=True), SQUARE, [[27.0]]),
    "twice as large": (
        Case(torch.tensor(BINOMIAL), up=(2, 2), padding=(2, 1, 2, 1), gain=4.0),
        SQUARE,
        [
            [0.5625, 0.9375, 1.3125, 1.125],
            [1.125, 1.75, 2.25, 1.875],
            [1.875, 2.75, 3.25, 2.625],
            [1.6875, 2.4375, 2.8125, 2.25],
        ],
    ),
    "half as large": (
        Case(torch.tensor(BINOMIAL), down=(2, 2), padding=(1, 1, 1, 1)),
        np.arange(16.0).reshape(4, 4).tolist(),
        [[2.734375, 3.9375], [7.546875, 8.75]],
    ),
    "same size": (Case(torch.tensor(BINOMIAL), padding=(2, 1, 2, 1)), SQUARE, [[0.4375, 0.75], [0.84375, 1.40625]]),
    "all at once": (
        Case(torch.tensor([1.0, 2.0, 3.0]), up=(3, 3), down=(2, 2), padding=(2, 1, 0, -1)),
        SQUARE,
        [[3.0, 9.0, 12.0, 0.0], [6.0, 18.0, 16.0, 0.0]],
    ),
}


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_published_answers_of_upfirdn2d(name: str, dtype: torch.dtype, way: str) -> None:
    case, image, answer = KNOWN[name]
    x = torch.tensor([[image]], dtype=torch.float64)
    assert case.literally(x)[0][0, 0].tolist() == answer
    expected = torch.tensor([[answer]], dtype=torch.float64)
    assert torch.equal(case.run(x.to(dtype)), expected.to(dtype))


@pytest.mark.parametrize("part", range(4))
def test_a_thousand_random_cases(part: int, way: str) -> None:
    rng = random.Random(part)
    for _ in range(250):
        case, x = drawn_case(rng)
        y, magnitude = case.literally(x)
        assert_close(case.run(x), y, 1e-12 * magnitude)


ROUNDING = {  # what storing a result costs, and the smallest step
    torch.float32: (0.0, 0.0),
    torch.float16: (2.0**-11, 2.0**-25),
    torch.bfloat16: (2.0**-8, 0.0),
}


@pytest.mark.parametrize("dtype", ROUNDING)
def test_random_cases_in_the_smaller_types(dtype: torch.dtype, way: str) -> None:
    relative, absolute = ROUNDING[dtype]
    rng = random.Random(5)
    for _ in range(150):
        case, x = drawn_case(rng)
        case = Case(None if case.f is None else case.f.float(), *list(vars(case).values())[1:])
        x = x.to(dtype)
        y, magnitude = case.literally(x)
        found = case.run(x)
        assert found.dtype == dtype
        assert_close(found, y, 1e-5 * magnitude + relative * np.abs(y) + absolute)
        assert torch.equal(found, case.run(x.float()).to(dtype)), "rounded once, from float32"


@pytest.mark.parametrize("taps", [3, 16, 64])
def test_long_filters(taps: int, way: str) -> None:
    rng = random.Random(taps)
    x = normal(rng, 1, 2, 9, 8)
    for f in (normal(rng, taps), normal(rng, taps, 2)):
        case = Case(f, up=(2, 1), down=(1, 3), padding=(taps, 3, 1, taps))
        y, magnitude = case.literally(x)
        assert_close(case.run(x), y, 1e-12 * magnitude)


def test_a_crop_beyond_the_image_leaves_zeros(way: str) -> None:
    x = torch.randn(1, 2, 3, 2, requires_grad=True)
    for up in (1, 2):
        for padding in ((-9, 14, 0, 0), (14, -9, 0, 0), (0, 0, -20, 30), (8, 8, -20, 30)):
            case = Case(torch.tensor([1.0, 2.0]), up=(up, up), padding=padding)
            y = case.run(x)
            assert np.array_equal(y.detach().numpy(), case.literally(x)[0])
            assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.zeros_like(x))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("channels", [1, 3, 16])
def test_a_bad_sample_reaches_only_what_it_touches(bad: float, dtype: torch.dtype, channels: int, way: str) -> None:
    rng = random.Random(channels)
    for _ in range(25):
        case, x = drawn_case(rng)
        case = Case(None if case.f is None else case.f.to(dtype), *list(vars(case).values())[1:-1])
        x = x[:, :1].repeat(1, channels, 1, 1).to(dtype)
        x[0, channels // 2, rng.randrange(x.shape[2]), rng.randrange(x.shape[3])] = bad
        with np.errstate(invalid="ignore"):
            expected = np.isfinite(case.literally(x)[0])
        for layout in (torch.contiguous_format, torch.channels_last):
            y = case.run(x.contiguous(memory_format=layout))
            assert np.array_equal(np.isfinite(y.numpy()), expected), f"{case} {tuple(x.shape)}"


def test_autocast_changes_nothing(way: str) -> None:
    x = torch.randn(1, 3, 6, 6)
    for case in (Case(torch.rand(4), padding=(2, 1, 2, 1)), Case(torch.rand(4), up=(2, 2))):
        with torch.autocast("cpu", torch.bfloat16):
            inside = case.run(x)
        assert torch.equal(inside, case.run(x))


def test_no_sample_no_work(way: str) -> None:
    x = torch.randn(0, 3, 4, 5, requires_grad=True)
    for case in (Case(torch.rand(4), padding=(2, 1, 2, 1)), Case(torch.rand(4), up=(2, 2)), Case(None, down=(2, 2))):
        y = case.run(x)
        assert y.shape[:2] == (0, 3)
        assert min(y.shape[2:]) >= 1
        assert torch.autograd.grad(y.sum(), x)[0].shape == x.shape


def test_the_layout_is_kept(way: str) -> None:
    wide = torch.randn(2, 4, 6, 10)
    kinds = {
        "contiguous": (wide, torch.contiguous_format),
        "channels_last": (wide.contiguous(memory_format=torch.channels_last), torch.channels_last),
        "sliced": (wide[:, :, ::2, ::2], torch.contiguous_format),
        "transposed": (wide.transpose(2, 3), torch.contiguous_format),
        "expanded": (wide[:1].expand(2, -1, -1, -1), torch.contiguous_format),
    }
    for name, (x, layout) in kinds.items():
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            x = x.to(dtype)
            for case in (Case(torch.rand(3)), Case(torch.rand(3), (2, 2), padding=(1, 2, 3, 4)), Case(None, (3, 2))):
                assert case.run(x).is_contiguous(memory_format=layout), name
            for act in ("linear", "lrelu", "swish"):
                y = reference.bias_act(x, torch.rand(4), 1, act, 0.2, 1.0, 0.5)
                assert y.is_contiguous(memory_format=layout), name
            y = reference.epilogue(
                x, torch.rand(2, 4), torch.rand(2, 1, *x.shape[2:]), torch.tensor(0.1), None, "relu", 0.0, 1.0, None
            )
            assert y.is_contiguous(memory_format=layout), name


@pytest.mark.parametrize(
    "case",
    [
        Case(torch.tensor(BINOMIAL).double(), padding=(2, 1, 2, 1), gain=1.5),
        Case(torch.tensor(BINOMIAL).double(), up=(2, 2), padding=(2, 1, 2, 1), gain=4.0),
        Case(torch.tensor(BINOMIAL).double(), down=(2, 2), padding=(1, 1, 1, 1), flip_filter=True),
        Case(torch.rand(3, 5, dtype=torch.float64), up=(3, 1), down=(2, 2), padding=(3, -1, 2, 0)),
        Case(None, up=(2, 3), padding=(-1, 2, 0, 0)),
    ],
    ids=["same", "up", "down", "mixed", "none"],
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_of_upfirdn2d(case: Case, layout: torch.memory_format, way: str) -> None:
    x = torch.randn(2, 2, 3, 4, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    assert torch.autograd.gradcheck(case.run, (x,))
    assert torch.autograd.gradgradcheck(case.run, (x,))


def test_the_gradient_is_the_adjoint_operator(way: str) -> None:
    rng = random.Random(3)
    for _ in range(200):
        case, x = drawn_case(rng)
        x.requires_grad_()
        y = case.run(x)
        dy = torch.randn_like(y)
        (dx,) = torch.autograd.grad(y, x, dy)
        expected, magnitude = case.adjoint(*x.shape[2:]).literally(dy)
        assert_close(dx, expected, 1e-12 * magnitude)


sizes = st.integers(1, 6)
factor_pairs = st.tuples(st.integers(1, 4), st.integers(1, 4))
pad_quadruples = st.tuples(*[st.integers(-3, 8)] * 4)


@st.composite
def cases(draw: Any) -> tuple[Case, Tensor]:
    rng = random.Random(draw(st.integers(0, 2**20)))
    sides = draw(st.one_of(st.none(), st.tuples(sizes), st.tuples(sizes, sizes)))
    case = Case(
        None if sides is None else normal(rng, *sides),
        draw(factor_pairs),
        draw(factor_pairs),
        draw(pad_quadruples),
        draw(st.booleans()),
    )
    x = normal(rng, 1, 2, draw(sizes), draw(sizes))
    if not case.fits(*x.shape[2:]):
        case = Case(case.f, case.up, case.down, (8, 8, 8, 8), case.flip_filter)
    return case, x


@settings(max_examples=100, deadline=None)
@given(cases())
def test_the_adjoint_property(drawn: tuple[Case, Tensor]) -> None:
    """<y, A x> = <A^T y, x>, with A^T the operator of the published parameters."""
    case, x = drawn
    y = case.run(x)
    other = torch.sin(torch.arange(y.numel(), dtype=torch.float64)).reshape(y.shape)
    back = case.adjoint(*x.shape[2:]).run(other)
    assert back.shape == x.shape
    assert torch.allclose((other * y).sum(), (back * x).sum(), rtol=1e-10, atol=1e-10)
    assert case.adjoint(*x.shape[2:]).adjoint(*y.shape[2:]).run(x).allclose(y)


@settings(max_examples=60, deadline=None)
@given(cases(), st.floats(-3, 3), st.floats(-3, 3))
def test_it_is_linear(drawn: tuple[Case, Tensor], a: float, b: float) -> None:
    case, x = drawn
    other = torch.cos(torch.arange(x.numel(), dtype=torch.float64)).reshape(x.shape)
    expected = a * case.run(x) + b * case.run(other)
    assert torch.allclose(case.run(a * x + b * other), expected, rtol=1e-11, atol=1e-11)


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, sizes, sizes, st.integers(1, 3), st.integers(1, 3))
def test_two_filters_are_the_filter_of_their_convolution(
    height: int, width: int, first: int, second: int, up: int, down: int
) -> None:
    rng = random.Random(height * 6 + width)
    f, g = normal(rng, first), normal(rng, second)
    both = torch.from_numpy(np.convolve(f.numpy(), g.numpy()))
    x = normal(rng, 1, 1, height, width)
    room = (first + second,) * 4
    once = Case(both, (up, up), (down, down), room).run(x)
    twice = Case(g, down=(down, down)).run(Case(f, (up, up), padding=room).run(x))
    assert torch.allclose(once, twice, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("taps", "up", "keeps"),
    [
        ([1, 3, 3, 1], 2, True),
        (SYM6, 2, True),
        ([1, 1], 2, True),
        ([1, 2, 3, 2, 1], 3, True),
        ([1, 2, 3, 3, 1], 3, False),
        ([1, 2, 1], 2, True),
        ([1, 3, 1], 2, False),
        ([1, 2, 3, 4], 2, False),
        ([1, 4, 6, 4, 1], 2, True),
        ([1, 3, 5, 3, 1], 2, False),
        ([1, 2, 3, 2, 1], 2, False),
    ],
)
def test_only_balanced_filters_keep_a_constant_image_constant(taps: list[float], up: int, keeps: bool) -> None:
    f = torch.tensor(taps, dtype=torch.float64)
    f = f / f.sum()
    sums = torch.stack([f[phase::up].sum() for phase in range(up)])
    assert bool((sums - sums.mean()).abs().max() < 1e-8) == keeps
    n = len(taps)
    p0, p1 = (n + up - 1) // 2, (n - up) // 2
    x = torch.full((1, 1, 20, 20), 0.7, dtype=torch.float64)
    y = Case(f, (up, up), padding=(p0, p1, p0, p1), gain=up * up).run(x)
    assert y.shape[2:] == (20 * up, 20 * up)
    inner = y[:, :, 14:-14, 14:-14]
    assert bool((inner - 0.7).abs().max() < 1e-8) == keeps
    assert (inner.mean() - 0.7).abs() < 0.02  # the brightness is right on average


def everything(x: Tensor, f: Tensor, b: Tensor, demodulation: Tensor) -> Tensor:
    """One after the other: all that a layer does."""
    y = Case(f, up=(2, 2), padding=(2, 1, 2, 1), gain=4.0).run(x)
    y = reference.epilogue(y, demodulation, y[:, :1], None, b, "lrelu", 0.2, 1.4, 2.0)
    for act in SMOOTH:
        y = reference.bias_act(y, b, 1, act, 0.0, 1.0, None)
    return Case(f, down=(2, 2), padding=(1, 1, 1, 1)).run(y)


def assert_same_compiled(function: Any, sides: tuple[int, ...], tolerance: float, **options: Any) -> None:
    """The compiled function gives the values and gradients of the plain one."""
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, **options)
    f, b, demodulation = torch.tensor(BINOMIAL), torch.randn(3), torch.rand(2, 3)
    for side in sides:
        x = torch.randn(2, 3, side, side + 1).contiguous(memory_format=torch.channels_last).requires_grad_()
        expected, found = function(x, f, b, demodulation), compiled(x, f, b, demodulation)
        assert torch.allclose(found, expected, rtol=tolerance, atol=tolerance)
        grads = [torch.autograd.grad(y.square().sum(), x)[0] for y in (expected, found)]
        assert torch.allclose(*grads, rtol=10 * tolerance, atol=10 * tolerance)


def one_layer(x: Tensor, f: Tensor, b: Tensor, demodulation: Tensor) -> Tensor:
    y = Case(f, up=(2, 2), padding=(2, 1, 2, 1), gain=4.0).run(x)
    y = reference.epilogue(y, demodulation, y[:, :1], None, b, "lrelu", 0.2, 1.4, 2.0)
    return reference.bias_act(y, b, 1, "swish", 0.0, 1.0, None)


def test_it_compiles_in_one_graph(way: str) -> None:
    assert_same_compiled(one_layer, (4,), 1e-6, backend="aot_eager")


@pytest.mark.slow
def test_it_compiles_with_sizes_that_change(way: str) -> None:
    assert_same_compiled(everything, (4, 6, 9), 1e-6, backend="aot_eager", dynamic=True)


@pytest.mark.slow
def test_it_compiles_with_the_default_compiler(way: str) -> None:
    assert_same_compiled(everything, (8,), 1e-5)
