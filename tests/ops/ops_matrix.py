"""What the ops are tested on: layouts, seeded random cases, definitions in float64, and how much they may differ.

The definitions here are written from the formulas alone, as matrices and as torch's elementary functions, and are
differentiable to any order by torch's own autograd: a second witness beside the reference implementation.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
NAMES = {dtype: str(dtype).removeprefix("torch.") for dtype in DTYPES}
LAYOUTS = (
    "contiguous",
    "channels_last",
    "sliced",  # every other element of a larger tensor of NaN
    "narrowed",  # some channels of a wider channels_last tensor
    "transposed",
    "expanded",  # stride 0 along the first dimension
    "shifted",  # contiguous, from an odd address
    "shifted_channels_last",
)

# The share of the sum of magnitudes that rounding on the way may cost, and the share of the result that storing it
# costs; and the distance between the smallest numbers of each dtype.
ARITHMETIC = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-5, torch.bfloat16: 1e-5}
STORAGE = {torch.float64: 0.0, torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
SMALLEST = {torch.float64: 0.0, torch.float32: 2.0**-126, torch.float16: 2.0**-24, torch.bfloat16: 2.0**-126}


def channels_last_of(rank: int) -> torch.memory_format:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return formats.get(rank, torch.contiguous_format)


def shifted(values: Tensor) -> Tensor:
    """The same values and strides, starting one element into their storage."""
    room = values.new_full((values.numel() + 1,), math.nan)
    return room.as_strided(values.shape, values.stride(), 1).copy_(values)


def arranged(values: Tensor, layout: str) -> Tensor:
    """The same values (the first along dimension 0, repeated, for `expanded`) in another layout."""
    rank = values.dim()
    if layout == "channels_last":
        return values.contiguous(memory_format=channels_last_of(rank))
    if layout == "sliced":
        room = values.new_full([2 * side + 1 for side in values.shape], math.nan)
        return room[tuple(slice(1, None, 2) for _ in values.shape)].copy_(values)
    if layout == "narrowed" and rank >= 4:
        wide = values.new_full([values.shape[0], values.shape[1] + 3, *values.shape[2:]], math.nan)
        return wide.contiguous(memory_format=channels_last_of(rank))[:, 1:-2].copy_(values)
    if layout == "transposed":
        order = list(range(rank))[::-1]
        return values.permute(order).contiguous().permute(order)
    if layout == "expanded" and values.shape[0] > 0:
        return values[:1].expand(values.shape)
    if layout.startswith("shifted"):
        return shifted(arranged(values, "channels_last" if layout.endswith("last") else "contiguous"))
    return values.contiguous()


def drawn(shape: Sequence[int], seed: int, dtype: torch.dtype = torch.float64, device: Any = "cpu") -> Tensor:
    """Normal numbers, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64).to(dtype).to(device)


def exact(value: Tensor | None) -> Tensor | None:
    """A copy in float64 on the CPU: what the definitions compute on."""
    return None if value is None else value.detach().to("cpu", torch.float64)


def assert_layout_kept(y: Tensor, x: Tensor, what: str = "") -> None:
    """channels_last stays; all else becomes contiguous; what is both, and what has five dimensions, is free."""
    last = channels_last_of(x.dim())
    plain, other = x.is_contiguous(), x.is_contiguous(memory_format=last)
    if other and (plain or x.dim() == 5):
        assert y.is_contiguous() or y.is_contiguous(memory_format=last), what
    else:
        assert y.is_contiguous(memory_format=last if other else torch.contiguous_format), (
            f"{what}: strides {y.stride()} of {tuple(y.shape)} from {x.stride()} of {tuple(x.shape)}"
        )


def excess(
    actual: Tensor,
    expected: Tensor,
    magnitude: Tensor,
    steps: float = 1.0,
    through: torch.dtype | None = None,
) -> float:
    """By how many times the largest difference exceeds what is allowed; at most 1 is right.

    `steps`: how many values were rounded to the dtype one behind the other, each as large as the magnitude; 1: only
    the result. `through`: the dtype of what lies between, where it is coarser than that of the result.
    """
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} instead of {tuple(expected.shape)}"
    if actual.numel() == 0:
        return 0.0
    dtype = actual.dtype
    rounding = max(STORAGE[dtype], STORAGE[through or dtype])
    stored = STORAGE[dtype] * expected.abs() if steps == 1 else rounding * steps * magnitude
    allowed = ARITHMETIC[dtype] * magnitude + stored + max(SMALLEST[dtype], SMALLEST[through or dtype]) * steps
    difference = (exact(actual) - expected).abs()
    worst = torch.where(difference == 0, 0.0, difference / allowed).max()
    return math.inf if worst.isnan() else float(worst)


# --- upfirdn2d


@dataclass(frozen=True)
class Resampling:
    """The arguments of one upfirdn2d, its filter by its shape; `None` is the identity."""

    shape: tuple[int, int, int, int]
    taps: tuple[int, ...] | None
    up: tuple[int, int] = (1, 1)
    down: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    flip: bool = False
    gain: float = 1.0
    layout: str = "contiguous"
    seed: int = 0

    def output(self) -> tuple[int, int]:
        """Height and width of the result."""
        h, w = self.shape[2:]
        fh, fw = (self.taps[0], self.taps[-1]) if self.taps else (1, 1)
        x0, x1, y0, y1 = self.padding
        return (
            (h * self.up[1] + y0 + y1 - fh) // self.down[1] + 1,
            (w * self.up[0] + x0 + x1 - fw) // self.down[0] + 1,
        )

    def arguments(self) -> dict[str, Any]:
        return {
            "up": list(self.up),
            "down": list(self.down),
            "padding": list(self.padding),
            "flip_filter": self.flip,
            "gain": self.gain,
        }

    def inputs(self, dtype: torch.dtype, device: Any) -> tuple[Tensor, Tensor | None]:
        """The image in its layout, and the filter."""
        x = arranged(drawn(self.shape, self.seed, dtype, device), self.layout)
        precision = torch.float64 if dtype == torch.float64 else torch.float32
        f = None if self.taps is None else drawn(self.taps, self.seed + 10_000_019, precision, device)
        return x, f


def random_resampling(seed: int, largest: int = 20, batches: Sequence[int] = (0, 1, 1, 1, 2, 2, 3)) -> Resampling:
    """Factors 1 to 4, up to 12 taps, pads of both signs, any layout; at least one pixel comes out."""
    draw = random.Random(seed)
    while True:
        kind = draw.choice(("1-D", "1-D", "2-D", "2-D", "none") if draw.random() < 0.3 else ("1-D", "2-D"))
        sides = (draw.randint(1, 12),) if kind == "1-D" else (draw.randint(1, 12), draw.randint(1, 12))
        shape = (
            draw.choice(list(batches)),
            draw.choice((1, 2, 3, 4, 5, 7, 8, 11, 16, 17, 32)),
            draw.randint(1, largest),
            draw.randint(1, largest),
        )
        case = Resampling(
            shape=shape,
            taps=None if kind == "none" else sides,
            up=(draw.randint(1, 4), draw.randint(1, 4)),
            down=(draw.randint(1, 4), draw.randint(1, 4)),
            padding=tuple(draw.randint(-5, 9) for _ in range(4)),  # type: ignore[arg-type]
            flip=draw.random() < 0.5,
            gain=draw.choice((1.0, 1.0, 4.0, -1.0, 0.37, -2.5, 0.0)),
            layout=draw.choice(LAYOUTS + ("contiguous", "channels_last") * 2),
            seed=seed,
        )
        if min(case.output()) >= 1:
            return case


def selection(length: int, taps: int, up: int, down: int, before: int, after: int) -> Tensor:
    """[taps, out, length]: 1 where tap t of output m meets input i, by the definition on the zero-stuffed signal."""
    out = (length * up + before + after - taps) // down + 1
    t = torch.arange(taps)[:, None]
    m = torch.arange(out)[None, :]
    j = m * down + t - before
    inside = (j >= 0) & (j < length * up) & (j % up == 0)
    one_hot = torch.nn.functional.one_hot(torch.where(inside, j // up, 0), length)
    return (one_hot * inside[:, :, None]).double()


def upfirdn2d_definition(x: Tensor, f: Tensor | None, case: Resampling) -> Tensor:
    """The double sum, as matrices: x [N, C, H, W] and f in float64 on the CPU."""
    f = torch.ones(1, dtype=torch.float64) if f is None else f
    g = f if case.flip else f.flip(tuple(range(f.dim())))
    x0, x1, y0, y1 = case.padding
    columns = selection(x.shape[3], g.shape[-1], case.up[0], case.down[0], x0, x1)
    rows = selection(x.shape[2], g.shape[0], case.up[1], case.down[1], y0, y1)
    if g.dim() == 1:
        across = x @ torch.einsum("t,tkw->wk", g, columns)
        return torch.einsum("s,smh->mh", g, rows) @ across * case.gain
    total = x.new_zeros((*x.shape[:2], rows.shape[1], columns.shape[1]))
    for t in range(g.shape[1]):
        total = total + torch.einsum("s,smh->mh", g[:, t], rows) @ (x @ columns[t].T)
    return total * case.gain


def magnitude_of(x: Tensor, f: Tensor | None, case: Resampling) -> Tensor:
    """The sum of |f||x||gain| for every output: what rounding is measured against."""
    return upfirdn2d_definition(x.abs(), None if f is None else f.abs(), case).abs()


# --- bias_act and epilogue

SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772

# Name: formula of (v, alpha), default alpha, default gain.
ACTIVATIONS: dict[str, tuple[Callable[[Tensor, float], Tensor], float, float]] = {
    "linear": (lambda v, _: v, 0.0, 1.0),
    "relu": (lambda v, _: torch.where(v > 0, v, torch.zeros_like(v)), 0.0, math.sqrt(2)),
    "lrelu": (lambda v, alpha: torch.where(v > 0, v, v * alpha), 0.2, math.sqrt(2)),
    "tanh": (lambda v, _: torch.tanh(v), 0.0, 1.0),
    "sigmoid": (lambda v, _: torch.sigmoid(v), 0.0, 1.0),
    "elu": (lambda v, _: torch.where(v > 0, v, torch.expm1(v)), 0.0, 1.0),
    "selu": (lambda v, _: SELU_SCALE * torch.where(v > 0, v, SELU_ALPHA * torch.expm1(v)), 0.0, 1.0),
    "softplus": (lambda v, _: torch.logaddexp(v, torch.zeros_like(v)), 0.0, 1.0),
    "swish": (lambda v, _: v * torch.sigmoid(v), 0.0, math.sqrt(2)),
}
SMOOTH = ("tanh", "sigmoid", "elu", "selu", "softplus", "swish")
PIECEWISE = ("linear", "relu", "lrelu")


def activated(v: Tensor, act: str, alpha: float | None, gain: float | None, clamp: float | None) -> Tensor:
    """clamp(gain * act(v)): saturated from |y| >= c on, with gradient 0 there; NaN passes."""
    formula, default_alpha, default_gain = ACTIVATIONS[act]
    y = formula(v, default_alpha if alpha is None else alpha) * (default_gain if gain is None else gain)
    if clamp is None:
        return y
    return torch.where(y.abs() >= clamp, torch.copysign(torch.full_like(y, clamp), y.detach()), y)


def bias_act_definition(x: Tensor, b: Tensor | None, dim: int, act: str, **options: float | None) -> Tensor:
    if b is not None:
        x = x + b.reshape([-1 if axis == dim % x.dim() else 1 for axis in range(x.dim())])
    return activated(x, act, options.get("alpha"), options.get("gain"), options.get("clamp"))


def epilogue_sum(x: Tensor, extra: dict[str, Tensor]) -> Tensor:
    """What the epilogue's activation is applied to."""
    if "demodulation" in extra:
        x = x * extra["demodulation"][:, :, None, None]
    if "noise" in extra:
        x = x + extra.get("noise_strength", 1.0) * extra["noise"]
    if "b" in extra:
        x = x + extra["b"][:, None, None]
    return x


def epilogue_definition(x: Tensor, extra: dict[str, Tensor], act: str, **options: float | None) -> Tensor:
    return activated(epilogue_sum(x, extra), act, options.get("alpha"), options.get("gain"), options.get("clamp"))


def threshold(values: Tensor, dtype: torch.dtype) -> float | None:
    """A clamp that some of these values exceed and none comes near: rounding must not decide about a gradient."""
    sizes = values.abs().flatten().sort().values
    middle = sizes[len(sizes) // 3 : max(len(sizes) * 9 // 10, len(sizes) // 3 + 2)]
    if len(middle) < 2 or middle[-1] == 0:
        return None
    widest = int((middle[1:] - middle[:-1]).argmax())
    low, high = float(middle[widest]), float(middle[widest + 1])
    clamp = (low + high) / 2
    if dtype != torch.float64:  # a number that every dtype holds, so that the clamped value is the same in all
        clamp = float(torch.tensor(clamp).to(torch.bfloat16))
    near = 3 * STORAGE[dtype] * clamp + 1e-5
    return clamp if low + near < clamp < high - near else None


# --- derivatives

Way = dict[str, Tensor]


def directions(inputs: dict[str, Tensor], y: Tensor, seed: int) -> list[Way]:
    """What the derivatives of each order are contracted with: dy, then one direction per input (and dy), twice."""
    dy = arranged(drawn(y.shape, seed + 1, y.dtype, y.device), ("contiguous", "sliced", "transposed")[seed % 3])
    along = {**inputs, "dy": dy}
    ways = [{"y": dy}]
    for order in (1, 2):
        names = enumerate(along.items())
        ways.append({k: drawn(v.shape, seed + 10 * order + i, v.dtype, v.device) for i, (k, v) in names})
    return ways


def orders(op: Callable[[dict[str, Tensor]], Tensor], inputs: dict[str, Tensor], ways: list[Way]) -> dict[str, Tensor]:
    """The value, and its derivatives of order 1, 2 and 3 by every input and by the incoming gradient."""
    inputs = {name: value.detach().requires_grad_() for name, value in inputs.items()}
    dy = ways[0]["y"].detach().requires_grad_()
    y = op(inputs)
    found = {"y": y.detach()}
    wanted = {**inputs, "dy": dy}
    pairs = [(y, dy)]
    for order in (1, 2, 3):
        by = inputs if order == 1 else wanted
        grads = gradients(pairs, by, last=order == 3)
        found |= {f"order {order} by {name}": grad.detach() for name, grad in grads.items()}
        if order < 3:
            pairs = [(grad, ways[order][name]) for name, grad in grads.items() if grad.requires_grad]
    return found


def gradients(pairs: list[tuple[Tensor, Tensor]], by: dict[str, Tensor], last: bool) -> dict[str, Tensor]:
    """The gradients of the contracted sum, zero where nothing depends on an input."""
    if not pairs:
        return {name: torch.zeros_like(value) for name, value in by.items()}
    outputs, weights = zip(*pairs, strict=True)
    grads = torch.autograd.grad(outputs, list(by.values()), weights, create_graph=not last, materialize_grads=True)
    return dict(zip(by, grads, strict=True))


def in_float64(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().to("cpu", torch.float64) for name, value in values.items()}


def absolute(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.abs() for name, value in in_float64(values).items()}


def differences(
    found: dict[str, Tensor], expected: dict[str, Tensor], sizes: dict[str, Tensor], steps: float = 8.0
) -> list[str]:
    """The derivatives that are off, each with how far; the value itself is rounded only once."""
    wrong = []
    through = found["y"].dtype
    for name, value in found.items():
        times = excess(value, expected[name], sizes[name], 1.0 if name == "y" else steps, through)
        if not times <= 1:
            wrong.append(f"{name}: {times:.3g} times the tolerance")
    return wrong
