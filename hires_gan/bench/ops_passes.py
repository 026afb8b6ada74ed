"""How a pass of an op is prepared, launched and checked: by autograd, by the compiler, and as a copy of its bytes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hires_gan.bench.ops_cases import LAYOUTS, Case, Pass
from hires_gan.bench.timing import Launch, Ready

Function = Callable[..., Tensor]
Answers = Sequence[Tensor | None]

_WINDOW = 256 * 2**20
"""Bytes that a window moves, unless that takes fewer or more calls than these."""
_FEWEST_CALLS, _MOST_CALLS = 3, {"cpu": 4, "cuda": 16}
_SEED = 0

_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Of the largest number of a tensor. A sum over an image in float32 loses more than one rounding."""
_FLIPPED = 1e-5
"""The share of numbers that may differ: where x + b rounds to the other side of 0, the slope is another one."""


@dataclass(frozen=True)
class Problem:
    """The tensors of one call and of its derivatives: nothing is shared with the next call, so nothing is cached."""

    inputs: list[Tensor]
    learned: list[Tensor]
    """Those of the inputs whose gradients are wanted."""
    penalised: list[Tensor]
    """Those whose gradients are differentiated again."""
    dy: Tensor
    """The gradient that arrives at y; it requires a gradient itself."""
    cotangents: list[Tensor]
    """The gradients that arrive at the gradients of `penalised`."""


def pose(case: Case, dtype: torch.dtype, layout: str, device: torch.device) -> Problem:
    """Make the tensors of a case: large ones in the dtype and layout, parameters in float32, from a fixed seed."""
    random = torch.Generator(device).manual_seed(_SEED)

    def make(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        # The mean of 0.5 keeps sums over a whole image away from 0, where nothing could be said about their error.
        made = torch.randn(shape, generator=random, dtype=torch.float32, device=device) + 0.5
        return made.to(dtype, memory_format=LAYOUTS[layout] if len(shape) == 4 else torch.contiguous_format)

    inputs = case.inputs(make)
    penalised = [inputs[number] for number in case.penalised]
    cotangents = [make(*tensor.shape, dtype=tensor.dtype) for tensor in penalised]
    return _joined(case, inputs, make(*case.output), cotangents)


def another(case: Case, problem: Problem) -> Problem:
    """The same numbers elsewhere in memory."""
    copies = [[tensor.detach().clone() for tensor in tensors] for tensors in (problem.inputs, problem.cotangents)]
    return _joined(case, copies[0], problem.dy.detach().clone(), copies[1])


def _joined(case: Case, inputs: list[Tensor], dy: Tensor, cotangents: list[Tensor]) -> Problem:
    learned = [inputs[number].requires_grad_() for number in case.learned]
    penalised = [inputs[number] for number in case.penalised]
    return Problem(inputs, learned, penalised, dy.requires_grad_(), cotangents)


class Contestant(ABC):
    """Something that computes the passes of a case."""

    @abstractmethod
    def prepare(self, what: Pass, problem: Problem) -> Callable[[], Answers]:
        """Do all that the pass needs beforehand; what is returned does the pass itself, once."""


class Eager(Contestant):
    """An op under autograd, as training calls it.

    - forward: y = op(inputs), recorded for the backward pass.
    - backward: the gradients of all learned inputs from dy.
    - double backward: the gradients of dy and of all learned inputs from those of the penalised inputs' gradients. The
      forward pass and the backward pass with `create_graph=True` have been done before.

    Args:
        function: Takes the inputs of the case.
    """

    def __init__(self, function: Function) -> None:
        self._function = function

    def prepare(self, what: Pass, problem: Problem) -> Callable[[], Answers]:
        """Run the passes before this one."""
        if what == "forward":
            return lambda: [self._function(*problem.inputs)]
        y = self._function(*problem.inputs)
        if what == "backward":
            return lambda: torch.autograd.grad(y, problem.learned, problem.dy)
        first = torch.autograd.grad(y, problem.penalised, problem.dy, create_graph=True)
        wanted = [problem.dy, *problem.learned]
        return lambda: torch.autograd.grad(first, wanted, problem.cotangents, allow_unused=True)


class Compiled(Contestant):
    """The reference under `torch.compile(fullgraph=True)`.

    Forward and backward are those of autograd. A compiled function's backward cannot be differentiated again; its
    double backward is therefore one compiled function of x, the parameters, dy and the cotangents, written with
    `torch.func.vjp` twice: the compiler drops what the answer does not need, and keeps nothing between the passes.

    Args:
        case: Whose reference is compiled.
    """

    def __init__(self, case: Case) -> None:
        self._case = case
        self._eager = Eager(torch.compile(case.plain, fullgraph=True, dynamic=False))
        self._second = torch.compile(self._twice, fullgraph=True, dynamic=False)

    def prepare(self, what: Pass, problem: Problem) -> Callable[[], Answers]:
        """Run the passes before this one, if they are apart from it."""
        if what != "double backward":
            return self._eager.prepare(what, problem)
        arguments = [tensor.detach() for tensor in (problem.dy, *problem.inputs)]
        return lambda: self._second(problem.cotangents, *arguments)

    def _twice(self, cotangents: list[Tensor], dy: Tensor, *inputs: Tensor) -> Answers:
        case = self._case
        places = [case.learned.index(number) for number in case.penalised]

        def plain(*learned: Tensor) -> Tensor:
            filled = list(inputs)
            for number, tensor in zip(case.learned, learned, strict=True):
                filled[number] = tensor
            return case.plain(*filled)

        def first(dy: Tensor, *learned: Tensor) -> tuple[Tensor, ...]:
            gradients = torch.func.vjp(plain, *learned)[1](dy)
            return tuple(gradients[place] for place in places)

        learned = [inputs[number] for number in case.learned]
        answers: Answers = torch.func.vjp(first, dy, *learned)[1](tuple(cotangents))
        return answers


def windows(contestant: Contestant, what: Pass, problems: Sequence[Problem]) -> Ready:
    """Let a contestant prepare the pass for every problem, anew for every window."""

    def ready() -> Sequence[Launch]:
        return [contestant.prepare(what, problem) for problem in problems]

    return ready


def copies(moved: int, calls: int, device: torch.device) -> Ready:
    """The limit: a copy that reads and writes `moved` bytes together, each time of another buffer."""
    half = -(-moved // 2)
    buffers = [torch.zeros(2, half, dtype=torch.uint8, device=device) for _ in range(calls)]
    launches: list[Any] = [lambda to=buffer[0], of=buffer[1]: to.copy_(of) for buffer in buffers]
    return lambda: launches


def calls_in_a_window(moved: int, device: torch.device) -> int:
    """How many calls are measured together: so many that a window is long, so few that they fit the memory."""
    return max(_FEWEST_CALLS, min(_MOST_CALLS[device.type], _WINDOW // moved))


def difference(found: Answers, expected: Answers) -> str:
    """Say how two results of a pass differ by more than rounding; an empty text where they do not.

    The rounding is that of the images, for the parameters' gradients too: they are sums over rounded images.
    """
    tolerance = max((_TOLERANCE[one.dtype] for one in expected if one is not None), default=0.0)
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        if one is None and other is None:
            continue
        one = torch.zeros_like(other) if one is None and other is not None else one
        other = torch.zeros_like(one) if other is None and one is not None else other
        assert one is not None and other is not None
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            return f"its result {number} is {_kind(one)}; the reference gives {_kind(other)}"
        text = _wrong(one, other, tolerance)
        if text:
            return f"its result {number}, {_kind(one)}, {text}"
    return ""


def _kind(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _wrong(one: Tensor, other: Tensor, tolerance: float) -> str:
    apart = (one.detach().double() - other.detach().double()).abs()
    scale = other.detach().double().abs().amax()
    wrong = int((~(apart <= tolerance * scale)).sum())
    if wrong <= _FLIPPED * one.numel():
        return ""
    return f"differs in {wrong:,} of {one.numel():,} numbers, by up to {float(apart.amax() / scale):.2g} of the largest"
