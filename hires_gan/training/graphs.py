"""CUDA graphs: a sequence of kernels recorded once and launched as a whole.

A step of StyleGAN2 is some thousands of kernels, of which a CPU launches fewer per second than a GPU computes. A
function that works in place on tensors at fixed addresses, and asks the device nothing, can be recorded; replaying it
launches the very same kernels.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

import torch

from hires_gan.memory import is_out_of_memory
from hires_gan.progress import say


class Recorder:
    """Makes functions that record themselves, with one pool of memory for what all of them need in between.

    Args:
        device: A CUDA device; on any other one, functions are called as they are.
        enabled: Whether to record at all.
        awaited: Phases that have to run once before any is recorded: what they take the first time, when libraries try
            kernels, comes out of memory that recordings do not keep for themselves yet.

    Attributes:
        enabled: Whether it records still: not behind something that could not be recorded.
        remarks: What was said of that.
    """

    def __init__(self, device: torch.device, enabled: bool, awaited: Iterable[str] = ()) -> None:
        self.enabled = enabled and device.type == "cuda"
        self._awaited = set(awaited)
        self.remarks: list[str] = []
        self._pool = torch.cuda.graph_pool_handle() if self.enabled else None

    def wrap(self, function: Callable[[], None], name: str) -> Callable[[], None]:
        """The same function, to be called again and again.

        The first call computes step by step: libraries choose their kernels, and what is made on first use is made.
        The second one records, or a later one if phases are awaited still. If that fails, the reason is said, and calls
        go on step by step.

        Args:
            function: Reads and writes tensors that stay where they are.
            name: For people.
        """
        return _Recorded(function, name, self) if self.enabled else function

    def ran(self, phase: str) -> None:
        """Know that a phase has run."""
        self._awaited.discard(phase)

    @property
    def ready(self) -> bool:
        """Whether to record what has been called before."""
        return self.enabled and not self._awaited

    def refuse(self, name: str, reason: str) -> None:
        """Record nothing from now on, and say why."""
        self.enabled = False
        self.remarks.append(
            f"no CUDA graphs: the {name} cannot be recorded, and kernels are launched one by one ({reason})"
        )
        say(self.remarks[-1])

    def record(self, function: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """Record one call; nothing of it is computed yet."""
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            # Other threads may go on to allocate and to copy: those that fetch images do.
            with _nothing_collected(), torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                function()
        except BaseException:
            torch.cuda.set_stream(current)  # a recording that fails leaves its own stream behind
            self._give_up(graph)
            _record_one_kernel()
            torch.cuda.set_stream(current)
            raise
        return graph

    def _give_up(self, graph: torch.cuda.CUDAGraph) -> None:
        """End what torch leaves open where not only a recording fails, but the end of it, too.

        Its allocator would take the recording to be under way for ever. As long as one is, no memory comes back that
        several streams have used, as that of every batch of images is. Torch has no public call for this.
        """
        assert self._pool is not None
        device = torch.cuda.current_device()
        try:
            torch._C._cuda_endAllocateToPool(device, self._pool)
        except (RuntimeError, AttributeError):  # it has ended in order, or torch has no such call: what is kept goes
            graph.reset()
            return
        torch._C._cuda_releasePool(device, self._pool)
        _FAILED.append(graph)


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """What is freed in a recording may be something that frees memory of the device, which a recording refuses."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _record_one_kernel() -> None:
    """Let torch's own generator know that nothing is recorded any more.

    It refuses to draw behind a recording that has failed, until another one ends in order.
    """
    # Memory may be exhausted; the first error is the one that is told.
    with suppress(RuntimeError), _nothing_collected():
        value = torch.zeros((), device="cuda")
        with torch.cuda.graph(torch.cuda.CUDAGraph(), capture_error_mode="thread_local"):
            value.zero_()


_FAILED: list[torch.cuda.CUDAGraph] = []
"""Recordings that have not ended in order: torch's allocators may ask them still whether a stream is theirs."""


class _Recorded:
    def __init__(self, function: Callable[[], None], name: str, recorder: Recorder) -> None:
        self._function, self._name, self._recorder = function, name, recorder
        self._graph: torch.cuda.CUDAGraph | None = None
        self._warm = False

    def __call__(self) -> None:
        if self._warm and self._graph is None and self._recorder.ready:
            self._graph = self._recorded()
        if self._graph is not None:
            self._graph.replay()
        else:
            self._function()
            self._warm = True

    def _recorded(self) -> torch.cuda.CUDAGraph | None:
        own: list[RuntimeError] = []

        def noting() -> None:
            try:
                self._function()
            except RuntimeError as error:
                own.append(error)
                raise

        try:
            return self._recorder.record(noting)
        except RuntimeError as error:
            # What the end of a recording says is that it has failed; why, the function's own error.
            cause = own.pop() if own else error
            try:
                if is_out_of_memory(cause):
                    raise cause from None
                self._recorder.refuse(self._name, (str(cause).strip() or type(cause).__name__).splitlines()[0])
            finally:
                del cause  # its traceback has this frame, and holds whatever was being computed
        return None
