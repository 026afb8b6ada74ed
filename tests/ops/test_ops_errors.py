"""Bad input: one sentence that names the argument, what was found and what is allowed, whatever computes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from ops_matrix import ACTIVATIONS

from hires_gan.ops import backend, bias_act, epilogue, upfirdn2d


def image(device: Any, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(shape or (2, 3, 4, 5), dtype=dtype, device=device)


def ones(device: Any, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(shape, dtype=dtype, device=device)


@dataclass(frozen=True)
class Wrong:
    """A call that must be refused, and what its message must say: patterns, in any order."""

    name: str
    call: Callable[[Any], Any]
    error: type[Exception] | tuple[type[Exception], ...]
    says: tuple[str, ...]


def fir(**changed: Any) -> Callable[[Any], Any]:
    """upfirdn2d on a small image, with these arguments changed; callables make them on the device."""

    def call(device: Any) -> Any:
        given: dict[str, Any] = {"x": image, "f": lambda d: ones(d, 4), "padding": 4, **changed}
        return upfirdn2d(**{name: value(device) if callable(value) else value for name, value in given.items()})

    return call


def bias(**changed: Any) -> Callable[[Any], Any]:
    def call(device: Any) -> Any:
        given: dict[str, Any] = {"x": image, "b": lambda d: ones(d, 3), **changed}
        return bias_act(**{name: value(device) if callable(value) else value for name, value in given.items()})

    return call


def end(**changed: Any) -> Callable[[Any], Any]:
    def call(device: Any) -> Any:
        given: dict[str, Any] = {
            "x": image,
            "demodulation": lambda d: ones(d, 2, 3),
            "noise": lambda d: ones(d, 2, 1, 4, 5),
            "noise_strength": lambda d: ones(d),
            "b": lambda d: ones(d, 3),
            **changed,
        }
        return epilogue(**{name: value(device) if callable(value) else value for name, value in given.items()})

    return call


FLOATS = ("float64", "float32", "float16", "bfloat16")

CASES = [
    # upfirdn2d
    Wrong(
        "x of rank 3", fir(x=lambda d: image(d, 3, 4, 5)), ValueError, (r"\bx\b", r"3, 4, 5|\b3\b", r"(?i)n, c, h, w")
    ),
    Wrong("x of rank 5", fir(x=lambda d: image(d, 1, 1, 3, 4, 5)), ValueError, (r"\bx\b", "(?i)n, c, h, w")),
    Wrong("x of integers", fir(x=lambda d: image(d, dtype=torch.int32)), TypeError, (r"\bx\b", "int32", *FLOATS)),
    Wrong("x of bytes", fir(x=lambda d: image(d, dtype=torch.uint8)), TypeError, (r"\bx\b", "uint8", *FLOATS)),
    Wrong("x complex", fir(x=lambda d: image(d, dtype=torch.complex64)), TypeError, (r"\bx\b", "complex64", *FLOATS)),
    Wrong("x a list", fir(x=[[1.0]]), TypeError, (r"\bx\b", "list", "(?i)tensor")),
    Wrong("x without height", fir(x=lambda d: image(d, 1, 3, 0, 5)), ValueError, (r"\bx\b", r"1, 3, 0, 5|\b0\b")),
    Wrong("f elsewhere", fir(f=lambda d: ones("meta", 4)), ValueError, (r"\bf\b", "meta")),
    Wrong(
        "f of integers",
        fir(f=lambda d: ones(d, 4, dtype=torch.int64)),
        TypeError,
        (r"\bf\b", "int64", "float32|floating"),
    ),
    Wrong("f with a gradient", fir(f=lambda d: ones(d, 4).requires_grad_()), ValueError, (r"\bf\b", "gradient|grad")),
    Wrong("f of 65 taps", fir(f=lambda d: ones(d, 65), padding=64), ValueError, (r"\bf\b", r"\b65\b", r"\b64\b")),
    Wrong("f of 65 rows", fir(f=lambda d: ones(d, 65, 2), padding=64), ValueError, (r"\bf\b", r"\b65\b", r"\b64\b")),
    Wrong("f of 65 columns", fir(f=lambda d: ones(d, 2, 65), padding=64), ValueError, (r"\bf\b", r"\b65\b", r"\b64\b")),
    Wrong("f empty", fir(f=lambda d: ones(d, 0)), ValueError, (r"\bf\b", r"\b0\b|empty")),
    Wrong("f empty in 2-D", fir(f=lambda d: ones(d, 3, 0)), ValueError, (r"\bf\b", r"\b0\b|empty")),
    Wrong("f of rank 3", fir(f=lambda d: ones(d, 2, 2, 2)), ValueError, (r"\bf\b", r"2, 2, 2|\b3\b")),
    Wrong("f of rank 0", fir(f=lambda d: ones(d)), ValueError, (r"\bf\b",)),
    Wrong("f a list", fir(f=[1, 3, 3, 1]), TypeError, (r"\bf\b", "list", "(?i)tensor|setup_filter")),
    Wrong("up of 0", fir(up=0), ValueError, (r"\bup\b", r"\b0\b", r"\b1\b")),
    Wrong("up negative", fir(up=[2, -1]), ValueError, (r"\bup\b", "-1", r"\b1\b")),
    Wrong("up of three", fir(up=[2, 2, 2]), ValueError, (r"\bup\b", r"2, 2, 2|\b3\b")),
    Wrong("up a fraction", fir(up=1.5), (TypeError, ValueError), (r"\bup\b", r"1\.5", "int|whole")),
    Wrong("up a float", fir(up=[2.0, 2.0]), (TypeError, ValueError), (r"\bup\b", r"2\.0", "int|whole")),
    Wrong("up text", fir(up="2"), (TypeError, ValueError), (r"\bup\b", "2", "int|whole")),
    Wrong("down of 0", fir(down=[1, 0]), ValueError, (r"\bdown\b", r"\b0\b", r"\b1\b")),
    Wrong("down of one", fir(down=[2]), ValueError, (r"\bdown\b",)),
    Wrong("down a float", fir(down=2.0), (TypeError, ValueError), (r"\bdown\b", r"2\.0", "int|whole")),
    Wrong("down nothing", fir(down=None), (TypeError, ValueError), (r"\bdown\b", "None", "int|whole")),
    Wrong("padding of three", fir(padding=[1, 2, 3]), ValueError, (r"\bpadding\b", r"1, 2, 3|\b3\b")),
    Wrong("padding of five", fir(padding=[1, 2, 3, 4, 5]), ValueError, (r"\bpadding\b", r"1, 2, 3, 4, 5|\b5\b")),
    Wrong(
        "padding of floats", fir(padding=[1.0, 2.0]), (TypeError, ValueError), (r"\bpadding\b", r"1\.0", "int|whole")
    ),
    Wrong("padding a fraction", fir(padding=0.5), (TypeError, ValueError), (r"\bpadding\b", r"0\.5", "int|whole")),
    Wrong("no width left", fir(f=lambda d: ones(d, 2, 7), padding=0), ValueError, ("padding", "-1", "7")),
    Wrong("no height left", fir(padding=[4, 4, -4, 0]), ValueError, (r"padding|output|height", r"-4|\b0\b")),
    Wrong("gain infinite", fir(gain=math.inf), ValueError, (r"\bgain\b", "inf", "finite")),
    Wrong("gain NaN", fir(gain=math.nan), ValueError, (r"\bgain\b", "nan", "finite")),
    Wrong("gain text", fir(gain="2"), TypeError, (r"\bgain\b", "2")),
    # bias_act
    Wrong("b too long", bias(b=lambda d: ones(d, 4)), ValueError, (r"\bb\b", r"\b4\b", r"\b3\b")),
    Wrong("b of one", bias(b=lambda d: ones(d, 1)), ValueError, (r"\bb\b", r"\b1\b", r"\b3\b")),
    Wrong("b of rank 2", bias(b=lambda d: ones(d, 3, 1)), ValueError, (r"\bb\b", r"3, 1|\b2\b")),
    Wrong("b of rank 0", bias(b=lambda d: ones(d)), ValueError, (r"\bb\b",)),
    Wrong("b of integers", bias(b=lambda d: ones(d, 3, dtype=torch.int64)), TypeError, (r"\bb\b", "int64", "float32")),
    Wrong(
        "b of float64", bias(b=lambda d: ones(d, 3, dtype=torch.float64)), TypeError, (r"\bb\b", "float64", "float32")
    ),
    Wrong(
        "b half, x not", bias(b=lambda d: ones(d, 3, dtype=torch.float16)), TypeError, (r"\bb\b", "float16", "float32")
    ),
    Wrong(
        "b of the other half",
        bias(x=lambda d: image(d, dtype=torch.float16), b=lambda d: ones(d, 3, dtype=torch.bfloat16)),
        TypeError,
        (r"\bb\b", "bfloat16", r"\bfloat16", "float32"),
    ),
    Wrong("b elsewhere", bias(b=lambda d: ones("meta", 3)), ValueError, (r"\bb\b", "meta")),
    Wrong("b a number", bias(b=0.5), TypeError, (r"\bb\b", "float|0\\.5", "(?i)tensor")),
    Wrong("dim too large", bias(dim=4), ValueError, (r"\bdim\b", r"\b4\b", r"-4|\b3\b")),
    Wrong("dim too small", bias(dim=-5), ValueError, (r"\bdim\b", r"-5", r"-4|\b3\b")),
    Wrong("dim a float", bias(dim=1.0), TypeError, (r"\bdim\b", r"1\.0", "int|whole")),
    Wrong("rank 1 has no dim 1", bias(x=lambda d: image(d, 3)), ValueError, (r"\bdim\b", r"\b1\b")),
    Wrong(
        "x of integers, bias_act",
        bias(x=lambda d: image(d, dtype=torch.int64)),
        TypeError,
        (r"\bx\b", "int64", *FLOATS),
    ),
    Wrong("unknown act", bias(act="swich"), ValueError, (r"\bact\b", "swich", "swish.*swish", *ACTIVATIONS)),
    Wrong("unknown act, near none", bias(act="qqq"), ValueError, (r"\bact\b", "qqq", *ACTIVATIONS)),
    Wrong("act in capitals", bias(act="ReLU"), ValueError, (r"\bact\b", "ReLU", *ACTIVATIONS)),
    Wrong(
        "act a number",
        bias(act=3),
        (TypeError, ValueError),
        (r"\bact\b", "3", *ACTIVATIONS),
    ),
    Wrong("clamp negative", bias(clamp=-0.5), ValueError, (r"\bclamp\b", r"-0\.5", r"\b0\b|negative")),
    Wrong("clamp NaN", bias(clamp=math.nan), ValueError, (r"\bclamp\b", "nan")),
    Wrong("clamp text", bias(clamp="1"), TypeError, (r"\bclamp\b", "1")),
    Wrong("alpha NaN", bias(act="lrelu", alpha=math.nan), ValueError, (r"\balpha\b", "nan", "finite")),
    Wrong("alpha infinite", bias(act="lrelu", alpha=-math.inf), ValueError, (r"\balpha\b", "-inf", "finite")),
    Wrong("gain of bias_act", bias(gain=math.inf), ValueError, (r"\bgain\b", "inf", "finite")),
    # epilogue
    Wrong("x of rank 2", end(x=lambda d: image(d, 2, 3)), ValueError, (r"\bx\b", "(?i)n, c, h, w")),
    Wrong(
        "x of integers, epilogue", end(x=lambda d: image(d, dtype=torch.int16)), TypeError, (r"\bx\b", "int16", *FLOATS)
    ),
    Wrong(
        "demodulation turned",
        end(demodulation=lambda d: ones(d, 3, 2)),
        ValueError,
        (r"\bdemodulation\b", r"3, 2", r"2, 3|(?i:n, c)"),
    ),
    Wrong(
        "demodulation of one sample",
        end(demodulation=lambda d: ones(d, 1, 3)),
        ValueError,
        (r"\bdemodulation\b", r"1, 3", r"2, 3|(?i:n, c)"),
    ),
    Wrong(
        "demodulation of rank 4",
        end(demodulation=lambda d: ones(d, 2, 3, 1, 1)),
        ValueError,
        (r"\bdemodulation\b", r"2, 3, 1, 1", r"2, 3\b|(?i:n, c)"),
    ),
    Wrong(
        "demodulation of float64",
        end(demodulation=lambda d: ones(d, 2, 3, dtype=torch.float64)),
        TypeError,
        (r"\bdemodulation\b", "float64", "float32"),
    ),
    Wrong(
        "demodulation elsewhere",
        end(demodulation=lambda d: ones("meta", 2, 3)),
        ValueError,
        (r"\bdemodulation\b", "meta"),
    ),
    Wrong("noise of other batch", end(noise=lambda d: ones(d, 3, 1, 4, 5)), ValueError, (r"\bnoise\b", r"3, 1, 4, 5")),
    Wrong("noise of channels", end(noise=lambda d: ones(d, 2, 3, 4, 5)), ValueError, (r"\bnoise\b", r"2, 3, 4, 5")),
    Wrong("noise turned", end(noise=lambda d: ones(d, 2, 1, 5, 4)), ValueError, (r"\bnoise\b", r"2, 1, 5, 4")),
    Wrong("noise of rank 2", end(noise=lambda d: ones(d, 4, 5)), ValueError, (r"\bnoise\b", r"4, 5")),
    Wrong(
        "noise of integers",
        end(noise=lambda d: ones(d, 2, 1, 4, 5, dtype=torch.int32)),
        TypeError,
        (r"\bnoise\b", "int32", "float32"),
    ),
    Wrong("strength of rank 1", end(noise_strength=lambda d: ones(d, 1)), ValueError, (r"\bnoise_strength\b",)),
    Wrong(
        "strength a number", end(noise_strength=0.1), TypeError, (r"\bnoise_strength\b", "float|0\\.1", "(?i)tensor")
    ),
    Wrong("b of the epilogue", end(b=lambda d: ones(d, 4)), ValueError, (r"\bb\b", r"\b4\b", r"\b3\b")),
    Wrong("act of the epilogue", end(act="tanh"), ValueError, (r"\bact\b", "tanh", "linear", "relu", "lrelu")),
    Wrong("act nearly right", end(act="lrel"), ValueError, (r"\bact\b", "lrel\\b", "lrelu.*lrelu")),
    Wrong("clamp of the epilogue", end(clamp=-1), ValueError, (r"\bclamp\b", "-1")),
    Wrong("gain of the epilogue", end(gain=math.nan), ValueError, (r"\bgain\b", "nan", "finite")),
    Wrong("alpha negative", end(alpha=-0.3), ValueError, (r"\balpha\b", r"-0\.3", r"\b0\b|negative")),
    Wrong("alpha of the epilogue", end(alpha=math.inf), ValueError, (r"\balpha\b", "inf", "finite")),
]


def refusal(wrong: Wrong, device: Any, implementation: str) -> Exception:
    with backend(implementation), pytest.raises(wrong.error) as caught:
        wrong.call(device)
    return caught.value


def unplaced(error: Exception) -> str:
    """The message without the name of the device, the only word that may differ between machines."""
    return re.sub(r"\bcuda(:\d+)?", "cpu", str(error))


@pytest.mark.parametrize("wrong", CASES, ids=lambda wrong: wrong.name)
def test_a_wrong_argument_is_named(device, wrong):
    found = refusal(wrong, device, "native")
    message = str(found)
    missing = [pattern for pattern in wrong.says if not re.search(pattern, message)]
    assert missing == [], message
    assert len(message) < 400
    assert "\n" not in message.strip()
    other = refusal(wrong, device, "reference")
    assert type(other) is type(found)
    assert str(other) == message
    assert unplaced(refusal(wrong, "cpu", "reference")) == unplaced(found)


def test_an_image_and_a_filter_on_two_real_devices():
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="meta"):
            upfirdn2d(image("cpu"), ones("meta", 4), padding=2)
        return
    with pytest.raises(ValueError, match="cuda"):
        upfirdn2d(image("cpu"), ones("cuda", 4), padding=2)


def test_the_smallest_calls_that_are_allowed(device):
    """At the limits: nothing is refused that the rules allow."""
    assert upfirdn2d(image(device, 1, 1, 1, 1), ones(device, 1)).shape == (1, 1, 1, 1)
    assert upfirdn2d(image(device, 1, 1, 1, 1), ones(device, 64), padding=[32, 31, 32, 31]).shape == (1, 1, 1, 1)
    assert upfirdn2d(image(device), ones(device, 4), padding=(0, 0)).shape == (2, 3, 1, 2)
    assert upfirdn2d(image(device, 0, 3, 4, 5), ones(device, 4)).shape == (0, 3, 1, 2)
    assert bias_act(image(device, 3), dim=0, b=ones(device, 3)).shape == (3,)
    assert bias_act(image(device), ones(device, 5), dim=-1, clamp=0).shape == (2, 3, 4, 5)
    assert bias_act(image(device, 3), act="relu").shape == (3,)
    assert bias_act(image(device), gain=2, alpha=1, clamp=1).shape == (2, 3, 4, 5)
    assert epilogue(image(device, 0, 3, 4, 5), ones(device, 0, 3), ones(device, 1, 1, 4, 5)).shape == (0, 3, 4, 5)
    half = image(device, dtype=torch.float16)
    assert epilogue(half, ones(device, 2, 3), b=ones(device, 3, dtype=torch.float16)).dtype == torch.float16


def test_a_gradient_of_the_filter_is_no_matter_without_gradients(device):
    """Under no_grad a filter that asks for a gradient is refused too: what a call means does not depend on the mode."""
    f = ones(device, 4).requires_grad_()
    with torch.no_grad(), pytest.raises(ValueError, match="grad"):
        upfirdn2d(image(device), f, padding=2)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: upfirdn2d(x, torch.ones(4), padding=2),
        lambda x: bias_act(x, act="lrelu"),
        lambda x: epilogue(x, noise=torch.ones(1, 1, *x.shape[2:])),
    ],
    ids=["upfirdn2d", "bias_act", "epilogue"],
)
def test_forward_mode_is_refused_where_its_tangents_would_be_lost(function):
    """torch passes a registered op without a rule for tangents as if nothing depended on its input."""
    x = ones("cpu", 2, 3, 4, 5)
    with backend("native"), pytest.raises(NotImplementedError, match="reference"):
        torch.func.jvp(function, (x,), (x,))
    with (
        backend("native"),
        torch.autograd.forward_ad.dual_level(),
        pytest.raises(NotImplementedError, match="reference"),
    ):
        function(torch.autograd.forward_ad.make_dual(x, x))
    with backend("reference"):
        _, tangent = torch.func.jvp(function, (x,), (x,))
    assert tangent.abs().max() > 0


@pytest.mark.parametrize("value", [np.int64(2), (np.int32(2), 1)])
def test_whole_numbers_of_numpy_are_whole_numbers(device, value):
    assert upfirdn2d(image(device), None, up=value).shape[3] == 10


@pytest.mark.parametrize("argument", [{"up": 2**62}, {"down": 2**62}, {"padding": 2**62}, {"padding": [0, -(2**62)]}])
def test_absurd_numbers_are_refused_before_they_overflow(device, argument):
    (name, _), *_ = argument.items()
    with pytest.raises(ValueError, match=f"{name} is .*allowed"):
        upfirdn2d(image(device), None, **argument)
