"""`run.profile`: two steps of a run under torch's profiler, with a span for each phase."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.autograd.profiler_util import FunctionEvent, FunctionEventAvg
from torch.profiler import ProfilerActivity, profile

from hires_gan.progress import say
from hires_gan.recipes.protocol import Phase
from hires_gan.training.activity import doing

_STEPS = 2
_ROWS = 40
_NAMED = ("phase: ", "data", "average")


class StepProfiler:
    """Traces one step in which every phase is due, and the one behind it; none of the others pays for it.

    The first steps are left out: libraries choose their kernels in them, and phases are recorded as CUDA graphs. As
    many have passed as two cycles have when the trace begins; a cycle leads from a step in which every phase is due to
    the next such one. A run may go on in the middle of one: then the rest of it comes on top.

    Args:
        folder: Where `trace.json.gz` (for chrome://tracing or Perfetto) and `summary.txt` are written; made when the
            trace is.
        device: Where the steps are computed.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.folder, self._device = folder, device
        self._seen, self._traced = 0, 0
        self._intervals: dict[str, int] = {}
        self._due: dict[str, int] = {}  # in which step a phase was due last, counted from the first one of this process
        self._profile: profile | None = None

    @property
    def done(self) -> bool:
        """Whether the trace is written."""
        return self._traced >= _STEPS

    def before(self, phases: Sequence[Phase], every: Sequence[Phase]) -> None:
        """Begin to trace, if it is time; called before every step.

        Args:
            phases: What is due in it.
            every: All phases of its stage.
        """
        self._intervals = {phase.name: phase.interval for phase in every}
        self._due |= dict.fromkeys((phase.name for phase in phases), self._seen)
        if self.done or self._profile is not None or self._seen < 2 * self._cycle or len(phases) < len(every):
            return
        activities = [ProfilerActivity.CPU]
        if self._device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(activities=activities, acc_events=True)
        self._profile.start()

    def behind(self) -> None:
        """Count the step and, behind the last one that is traced, write the trace."""
        self._seen += 1
        if self._profile is None:
            return
        self._traced += 1
        if self.done:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            self._profile.stop()
            self._write(self._profile)
            self._profile = None

    def close(self) -> None:
        """End a trace that the end of the run cuts short, and say where none was made."""
        if self._profile is not None:
            self._profile.stop()
            self._profile = None
        if not self.done:
            say(f"run.profile: nothing is traced; the run ended before {self._wanted()}")

    @property
    def _cycle(self) -> int:
        return math.lcm(*self._intervals.values())

    def _wanted(self) -> str:
        """How many steps of this process a trace takes, in words."""
        if not self._intervals:
            return "its first step"
        earliest = max(2 * self._cycle, self._seen - self._traced)
        starts = [step for step in range(earliest, earliest + self._cycle) if self._may_start(step)]
        # Where a phase was not due yet, nobody knows how far its next time is.
        return f"the {starts[-1] + _STEPS} steps that it takes{' at most' if len(starts) > 1 else ''}"

    def _may_start(self, step: int) -> bool:
        """Whether every phase is due in a step, as far as the steps until now tell."""
        return all(
            (step - self._due[name]) % interval == 0 if name in self._due else step % interval >= self._seen
            for name, interval in self._intervals.items()
        )

    def _write(self, traced: profile) -> None:
        self.folder.mkdir(exist_ok=True)
        traced.export_chrome_trace(str(self.folder / "trace.json.gz"))
        by = "self_device_time_total" if self._device.type == "cuda" else "self_cpu_time_total"
        table = traced.key_averages().table(sort_by=by, row_limit=_ROWS, max_name_column_width=100)
        (self.folder / "summary.txt").write_text(f"{_spans(traced)}\n{table}\n")
        say(f"run.profile: {_STEPS} steps are traced in {self.folder}: trace.json.gz, summary.txt")


@contextmanager
def span(name: str) -> Iterator[None]:
    """A span in the trace, such as `phase: generator`, and what the process is doing meanwhile (`activity`)."""
    with doing(name), torch.profiler.record_function(name):
        yield


def _spans(traced: profile) -> str:
    """The spans that the training loop names, with the time that Python spent in them; on a GPU also the GPU's."""
    averages = traced.key_averages()
    host = {row.key: row for row in averages if row.key.startswith(_NAMED) and row.device_type.name == "CPU"}
    events = traced.events() or ()  # type: ignore[no-untyped-call]
    return "\n".join(_line(row, _on_device(events, name)) for name, row in sorted(host.items()))


def _line(host: FunctionEventAvg, device: float | None) -> str:
    line = f"{host.key:32}{host.count:4} calls {host.cpu_time_total / 1000:10.2f} ms of the host"
    return line if device is None else f"{line} {device / 1000:10.2f} ms of the GPU"


def _on_device(events: Iterable[FunctionEvent], name: str) -> float | None:
    """Microseconds from a span's first kernel to the end of its last one, gaps included; None without any.

    The profiler has one such span for each of the GPU's streams: where they overlap, the time counts once.
    """
    ranges = [event.time_range for event in events if event.name == name and event.device_type.name != "CPU"]
    total, end = 0.0, float("-inf")
    for one in sorted(ranges, key=lambda each: each.start):
        total += max(one.end - max(one.start, end), 0.0)
        end = max(end, one.end)
    return total if ranges else None
