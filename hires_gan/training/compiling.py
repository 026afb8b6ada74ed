"""torch.compile of whole phases, derivatives of any order included.

torch.compile refuses a second derivative of what it has compiled. So autograd goes first: a phase computes once, losses
and gradients, while the ops that it calls are written down (`make_fx`). That list is what is compiled: there is nothing
in it that is left to differentiate. What can be recorded as a CUDA graph can be written down too, and for the same
reason: what changes from step to step comes in as a tensor.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from hires_gan.memory import is_out_of_memory
from hires_gan.progress import say
from hires_gan.training.activity import doing, progressing

Function = Callable[..., Sequence[Tensor]]
"""From tensors to tensors; writes none."""

CACHE = "TORCHINDUCTOR_CACHE_DIR"
"""The environment's variable for the folder in which torch keeps what it has compiled."""

PATIENCE = 3600.0
"""Seconds for which compiling counts as getting on: longer than anything takes that does not hang."""
_SIGN_OF_LIFE = 0.25
"""Seconds between two signs of that, which are well below the least `backend.hang_after`."""


def _add_into(x: Tensor, y: Tensor, *, alpha: float = 1, out: Tensor) -> Tensor:
    return out.copy_(torch.add(x, y, alpha=alpha))


_REWRITTEN = {torch.ops.aten.add.out: _add_into}
"""torch.compile takes no `out` that is a part of another tensor."""


class Compiler:
    """Makes functions that compile themselves.

    Args:
        enabled: Whether to compile at all.
        backend: torch.compile's; another than "inductor" shows what is wrong when something is.

    Attributes:
        seconds: What compiling each function took, by name.
        refused: Why a function is not compiled, by name.
    """

    def __init__(self, enabled: bool, backend: str = "inductor") -> None:
        self.enabled, self.backend = enabled, backend
        self.seconds: dict[str, float] = {}
        self.refused: dict[str, str] = {}

    @property
    def remarks(self) -> list[str]:
        """What was said of those functions that are not compiled."""
        return [f"not compiled: the {name} goes on op by op ({reason})" for name, reason in self.refused.items()]

    def wrap(self, function: Function, name: str) -> Function:
        """The same function, to be called again and again with tensors of the same shapes.

        The first call compiles, which takes seconds to minutes, and says so. If that fails, the reason is said, and
        calls go on step by step.

        Args:
            function: What it looks at besides its arguments are tensors that stay where they are.
            name: For people.
        """
        return _Compiled(function, name, self) if self.enabled else function

    def compile(self, function: Function, inputs: Sequence[Tensor]) -> Function:
        """Write down what a function does, compile that, and call it once: no later call takes long."""
        function(*inputs)  # libraries choose their kernels, and what is made on first use is made
        # On this thread, where the ops are written down; else the backward pass has threads of its own.
        with torch.autograd.set_multithreading_enabled(False):
            traced = make_fx(lambda *tensors: function(*tensors), _REWRITTEN, "real")(*inputs)
        # A phase's graphs are recorded by `graphs`, around what is compiled.
        options: dict[str, str | int | bool | Callable[..., Any]] = {"triton.cudagraphs": False}
        own = options if self.backend == "inductor" else None
        compiled = torch.compile(traced, fullgraph=True, dynamic=False, backend=self.backend, options=own)
        with torch.no_grad():
            compiled(*inputs)
        return _steady(compiled)


class _Compiled:
    def __init__(self, function: Function, name: str, compiler: Compiler) -> None:
        self._function, self._name, self._compiler = function, name, compiler
        self._compiled: Function | None = None

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        if self._name in self._compiler.refused:
            return self._function(*inputs)
        try:
            if self._compiled is None:
                self._compiled = self._compile(inputs)
            return self._compiled(*inputs)
        except Exception as error:  # whatever torch's compiler ends with: the function itself has not failed
            if is_out_of_memory(error):
                raise
            self._refuse(error)
            return self._function(*inputs)

    def _compile(self, inputs: Sequence[Tensor]) -> Function:
        say(f"compiling the {self._name}: seconds to minutes, once; a signal is obeyed behind it")
        start = time.perf_counter()
        with doing(f"compiling the {self._name}"), _getting_on():
            compiled = self._compiler.compile(self._function, inputs)
        seconds = self._compiler.seconds[self._name] = time.perf_counter() - start
        say(f"compiled the {self._name} in {seconds:.0f} s; {where_kept()}")
        return compiled

    def _refuse(self, error: Exception) -> None:
        self._compiled = None
        reason = next((line for line in str(error).strip().splitlines() if line), "")
        self._compiler.refused[self._name] = f"{type(error).__name__}: {reason}"
        say(self._compiler.remarks[-1])


@contextmanager
def _getting_on(seconds: float = PATIENCE) -> Iterator[None]:
    """Count as getting on for so long: torch's compiler tells nobody how far it is."""
    over, end = threading.Event(), time.monotonic() + seconds

    def signs() -> None:
        while time.monotonic() < end and not over.wait(_SIGN_OF_LIFE):
            progressing()

    thread = threading.Thread(target=signs, name="signs of life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def where_kept() -> str:
    """Where compiled code lies between runs."""
    folder = os.environ.get(CACHE)  # torch sets it when it compiles
    return f"kept in {folder} ({CACHE} names another folder)" if folder else "nothing of it is kept"


def _steady(compiled: Function) -> Function:
    """What refuses to compile again: shapes are fixed, and who compiled at every step would not get far."""

    def called(*inputs: Tensor) -> Sequence[Tensor]:
        with torch.no_grad(), torch.compiler.set_stance("fail_on_recompile"):
            return compiled(*inputs)

    return called
