"""Filters made of numbers, and the sizes and answers of the three ways of filtering."""

from __future__ import annotations

import math
import re
from typing import Any

import literal
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hires_gan.ops import downsample2d, filter2d, setup_filter, upsample2d

BINOMIAL = [1, 3, 3, 1]


@pytest.mark.parametrize(
    ("f", "shape"),
    [
        (None, (1, 1)),
        (5, (1, 1)),
        (2.5, (1, 1)),
        ([1], (1, 1)),
        (BINOMIAL, (4, 4)),
        (tuple(BINOMIAL), (4, 4)),
        (np.array(BINOMIAL), (4, 4)),
        (torch.tensor(BINOMIAL, dtype=torch.uint8), (4, 4)),
        ([1] * 7, (7, 7)),
        ([1] * 8, (8,)),
        ([1] * 64, (64,)),
        ([[1, 2, 3], [4, 5, 6]], (2, 3)),
        (np.ones((9, 64), dtype=np.float16), (9, 64)),
        ([True, True], (2, 2)),
    ],
)
def test_shapes_of_filters(f: Any, shape: tuple[int, ...]) -> None:
    made = setup_filter(f)
    assert made.shape == shape
    assert made.dtype == torch.float32
    assert made.device.type == "cpu"
    assert not made.requires_grad
    assert made.sum().item() == pytest.approx(1, abs=1e-6)


def test_a_separable_filter_is_kept_where_asked_for() -> None:
    assert setup_filter(BINOMIAL, separable=True).tolist() == [0.125, 0.375, 0.375, 0.125]
    assert setup_filter([1.0] * 12, separable=False).shape == (12, 12)
    assert setup_filter(3, separable=True).shape == (1,)
    assert torch.equal(setup_filter(BINOMIAL), torch.outer(*[setup_filter(BINOMIAL, separable=True)] * 2))


def test_normalising_flipping_and_gain() -> None:
    assert setup_filter([1, 2], normalize=False, separable=True).tolist() == [1.0, 2.0]
    assert setup_filter([1, 2], normalize=False, flip_filter=True, separable=True).tolist() == [2.0, 1.0]
    assert setup_filter([[1, 2], [3, 4]], normalize=False, flip_filter=True).tolist() == [[4.0, 3.0], [2.0, 1.0]]
    assert setup_filter([1, 3], gain=4, separable=True).tolist() == [0.5, 1.5]
    assert setup_filter([1, 3], gain=4).tolist() == [[0.25, 0.75], [0.75, 2.25]]
    assert setup_filter([1, -3], normalize=False, gain=-1).tolist() == [[-1.0, 3.0], [3.0, -9.0]]


def test_a_parameter_becomes_a_constant() -> None:
    made = setup_filter(torch.ones(4, requires_grad=True))
    assert not made.requires_grad


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"f": [[[1.0]]]}, ValueError, "f has the shape [1, 1, 1]"),
        ({"f": []}, ValueError, "f has the shape [0]; 1 to 64 taps"),
        ({"f": [[], []]}, ValueError, "f has the shape [2, 0]; 1 to 64 taps"),
        ({"f": [1.0] * 65}, ValueError, "f has the shape [65]; 1 to 64 taps"),
        ({"f": [1.0, math.nan]}, ValueError, "f is [1.0, nan]; finite taps"),
        ({"f": [1.0, math.inf], "normalize": False}, ValueError, "finite taps"),
        ({"f": [0.0, 0.0]}, ValueError, "f has taps that add up to 0"),
        ({"f": [0.1, 0.2, -0.3]}, ValueError, "use normalize=False"),
        ({"f": torch.tensor([1j])}, TypeError, "f has the dtype complex64; real numbers"),
        ({"f": [1.0, 1j]}, TypeError, "real numbers are allowed"),
        ({"f": "1331"}, TypeError, "f is '1331'; real numbers"),
        ({"f": [[1, 2], [3]]}, TypeError, "f is [[1, 2], [3]]; real numbers are allowed, in rows of one length"),
        ({"f": {"a": 1}}, TypeError, "f is {'a': 1}; real numbers"),
        ({"f": [[1, 2]], "separable": True}, ValueError, "separable is True and f has the shape [1, 2]"),
        ({"f": [1] * 9, "gain": -1}, ValueError, "gain is -1; a separable filter acts twice"),
        ({"f": [1, 1], "gain": math.nan}, ValueError, "gain is nan"),
    ],
)
def test_bad_filters_are_named(options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=re.escape(says)):
        setup_filter(**options)


@pytest.mark.parametrize(
    "helper",
    [lambda f: filter2d(X, f), lambda f: upsample2d(X, f), lambda f: downsample2d(X, f)],
    ids=["same", "up", "down"],
)
def test_helpers_name_a_bad_filter(helper: Any) -> None:
    with pytest.raises(TypeError, match="f is a list; a tensor or None is wanted: setup_filter makes one"):
        helper([1.0, 2.0])
    with pytest.raises(ValueError, match=re.escape("f has the shape [1, 1, 2]; [taps] or [high, wide] is allowed")):
        helper(torch.ones(1, 1, 2))
    with pytest.raises(ValueError, match="f has the shape"):
        helper(torch.tensor(1.0))


X = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])


@pytest.mark.parametrize("bad", [0, -1, 1.5, True, [], [1, 2, 3], [2, 0], None, "2"])
def test_helpers_name_a_bad_factor(bad: Any) -> None:
    with pytest.raises(ValueError, match="up is "):
        upsample2d(X, None, up=bad)
    with pytest.raises(ValueError, match="down is "):
        downsample2d(X, None, down=bad)


@pytest.mark.parametrize("bad", [1.5, True, [], [1, 2, 3], [0, 0, 0, 0, 0], [0.5, 1], None, "2"])
def test_helpers_name_a_bad_padding(bad: Any) -> None:
    for helper in (filter2d, upsample2d, downsample2d):
        with pytest.raises(ValueError, match="padding is "):
            helper(X, None, padding=bad)


def test_published_answers_of_the_helpers() -> None:
    f = setup_filter(BINOMIAL)
    assert upsample2d(X, f)[0, 0].tolist() == [
        [0.5625, 0.9375, 1.3125, 1.125],
        [1.125, 1.75, 2.25, 1.875],
        [1.875, 2.75, 3.25, 2.625],
        [1.6875, 2.4375, 2.8125, 2.25],
    ]
    ramp = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert downsample2d(ramp, f)[0, 0].tolist() == [[2.734375, 3.9375], [7.546875, 8.75]]
    assert filter2d(X, f)[0, 0].tolist() == [[0.4375, 0.75], [0.84375, 1.40625]]
    for helper in (filter2d, upsample2d, downsample2d):
        separable = helper(ramp, setup_filter(BINOMIAL, separable=True), gain=2)
        assert torch.allclose(separable, 2 * helper(ramp, f))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 12])
@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_sizes_of_the_helpers(n: int, factor: int) -> None:
    x = torch.randn(1, 2, 3 * factor, 5 * factor)
    for f in (torch.rand(n), torch.rand(n, 3), None):
        assert filter2d(x, f).shape == x.shape
        assert upsample2d(x, f, up=factor).shape[2:] == (3 * factor**2, 5 * factor**2)
        assert downsample2d(x, f, down=factor).shape[2:] == (3, 5)
    assert upsample2d(x, torch.rand(n), up=[factor, 1]).shape[2:] == (3 * factor, 5 * factor**2)
    assert downsample2d(x, torch.rand(n), down=[1, factor]).shape[2:] == (3, 5 * factor)


sides = st.integers(1, 9)


@settings(max_examples=150, deadline=None)
@given(
    sides,
    sides,
    st.integers(1, 7),
    st.integers(1, 7),
    st.integers(1, 4),
    st.lists(st.integers(0, 5), min_size=4, max_size=4),
)
def test_padding_of_the_helpers_is_added(h: int, w: int, high: int, wide: int, factor: int, padding: list[int]) -> None:
    x, f = torch.randn(1, 1, h, w, dtype=torch.float64), torch.randn(high, wide, dtype=torch.float64)
    x0, x1, y0, y1 = padding
    assert filter2d(x, f, padding).shape[2:] == (h + y0 + y1, w + x0 + x1)
    assert upsample2d(x, f, factor, padding).shape[2:] == (h * factor + y0 + y1, w * factor + x0 + x1)
    if h + y0 + y1 >= factor and w + x0 + x1 >= factor:
        reduced = downsample2d(x, f, factor, padding, flip_filter=True)
        assert reduced.shape[2:] == ((h + y0 + y1) // factor, (w + x0 + x1) // factor)
        pads = ((wide - factor + 1) // 2 + x0, (wide - factor) // 2 + x1)
        pads = (*pads, (high - factor + 1) // 2 + y0, (high - factor) // 2 + y1)
        expected, magnitude = literal.upfirdn2d(x, f, down=(factor, factor), padding=pads, flip_filter=True)
        assert (np.abs(reduced.numpy() - expected) <= 1e-12 * magnitude).all()


def test_forms_of_padding() -> None:
    f = setup_filter(BINOMIAL)
    for helper in (filter2d, upsample2d, downsample2d):
        assert torch.equal(helper(X, f, padding=1), helper(X, f, padding=[1, 1, 1, 1]))
        assert torch.equal(helper(X, f, padding=(1, 2)), helper(X, f, padding=[1, 1, 2, 2]))


@pytest.mark.parametrize("taps", [BINOMIAL, [1, 1], [1, 2, 1]])
def test_brightness_is_kept(taps: list[int]) -> None:
    x = torch.full((1, 1, 8, 8), 0.7)
    f = setup_filter(taps)
    for y in (upsample2d(x, f), downsample2d(x, f), filter2d(x, f)):
        inner = y[:, :, 2:-2, 2:-2] if y.shape[2] > 4 else y[:, :, 1:-1, 1:-1]
        assert torch.allclose(inner, torch.full_like(inner, 0.7))
