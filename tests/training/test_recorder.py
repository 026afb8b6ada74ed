"""What a recorder makes of recordings that fail, as torch would end them; no GPU is needed."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator

import pytest
import torch

from hires_gan.training.graphs import Recorder


def test_on_a_cpu_functions_are_called_as_they_are():
    def function() -> None: ...

    assert Recorder(torch.device("cpu"), True).wrap(function, "test") is function


@pytest.fixture
def refusing(monkeypatch):
    """A recorder whose recordings end as torch's do, and what goes wrong in them, for this reason."""

    def made(reason: str) -> tuple[Recorder, Callable[[], None]]:
        under_way = list[bool]()

        def work() -> None:
            if under_way:
                raise RuntimeError(reason)

        def record(function: Callable[[], None]) -> None:
            under_way.append(True)
            try:
                function()
            except RuntimeError as cause:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture") from cause
            finally:
                under_way.clear()

        recorder = Recorder(torch.device("cpu"), False)
        recorder.enabled = True
        monkeypatch.setattr(recorder, "record", record)
        return recorder, work

    return made


@pytest.mark.parametrize("reason", ["CUDA error: out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"])
def test_an_exhausted_memory_is_no_matter_of_the_recorder(reason, refusing, capsys):
    recorder, work = refusing(reason)
    call = recorder.wrap(work, "test")
    call()
    with pytest.raises(RuntimeError, match=reason):
        call()
    assert recorder.enabled and recorder.remarks == [] and capsys.readouterr().err == ""


def test_what_cannot_be_recorded_is_said_once_and_kept(refusing, capsys):
    recorder, work = refusing("operation not permitted\nwhen stream is capturing")
    calls = list[int]()
    one, other = (recorder.wrap(lambda: (work(), calls.append(1))[1], name) for name in ("one", "other"))
    for _ in range(3):
        one()
        other()
    (remark,) = recorder.remarks
    assert remark.startswith("no CUDA graphs: the one cannot be recorded") and "(operation not permitted)" in remark
    assert capsys.readouterr().err == remark + "\n" and len(calls) == 6 and not recorder.enabled


class TorchsRecordings:
    """What a recording asks of torch, in place of torch: once begun, it is taken to be under way until its end."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, ends: bool) -> None:
        self.under_way, self.held, self.streams = list[object](), list[object](), list[object]()
        self.ends, self.draws = ends, True
        for name, own in {
            "CUDAGraph": lambda: self,
            "graph": self.recording,
            "graph_pool_handle": lambda: (0, 1),
            "current_stream": lambda: "the stream",
            "current_device": lambda: 0,
            "set_stream": self.streams.append,
        }.items():
            monkeypatch.setattr(torch.cuda, name, own)
        monkeypatch.setattr(torch, "zeros", lambda *_, **__: self)
        for name, own in {"_cuda_endAllocateToPool": self.end, "_cuda_releasePool": self.release}.items():
            monkeypatch.setattr(torch._C, name, own)

    @contextlib.contextmanager
    def recording(self, graph: object, pool: object = None, **_: object) -> Iterator[None]:
        self.under_way.append(pool)
        self.held.append(pool)
        self.draws = False
        try:
            yield
        except BaseException:
            if not self.ends:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture") from None
            self.under_way.remove(pool)
            raise
        self.under_way.remove(pool)
        self.draws = True
        if pool is None:  # of its own: it goes with the graph, which nobody keeps
            self.held.remove(pool)

    def zero_(self) -> None:
        """Of the one tensor that there is."""

    def end(self, device: int, pool: object) -> None:
        if pool not in self.under_way:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.under_way.remove(pool)

    def release(self, device: int, pool: object) -> None:
        self.held.remove(pool)

    def reset(self) -> None:
        """Of the one graph that there is."""
        assert self.under_way == [], "torch would say that it has not ended"
        self.held.clear()

    def replay(self) -> None:
        """Of the one graph that there is."""


@pytest.mark.parametrize("ends", [True, False])
def test_no_recording_stays_under_way_that_has_failed(ends, monkeypatch, capsys):
    """Whether torch has ended it in order or not: its memory is let go of, once."""
    torchs = TorchsRecordings(monkeypatch, ends)
    recorder = Recorder(torch.device("cuda"), True)

    def asks() -> None:
        if torchs.under_way:
            raise RuntimeError("operation not permitted when stream is capturing")

    call = recorder.wrap(asks, "test")
    for _ in range(3):
        call()
    assert torchs.under_way == [] and set(torchs.streams) == {"the stream"} and gc.isenabled()
    assert torchs.held == [] and torchs.draws
    (remark,) = recorder.remarks
    assert "the test cannot be recorded" in remark and "(operation not permitted" in remark


@pytest.mark.parametrize("collects", [True, False])
def test_garbage_waits_for_the_end_of_a_recording(collects, monkeypatch):
    """Its finalizers may do what a recording refuses."""
    torchs, seen = TorchsRecordings(monkeypatch, ends=True), list[bool]()
    call = Recorder(torch.device("cuda"), True).wrap(lambda: seen.append(gc.isenabled()), "test")
    (gc.enable if collects else gc.disable)()
    try:
        for _ in range(3):
            call()
        assert seen == [collects, False] and gc.isenabled() == collects and torchs.under_way == []
    finally:
        gc.enable()


def test_an_exhausted_memory_within_a_recording_is_told_as_that_and_leaves_nothing(monkeypatch):
    """Where torch ends the recording in order: the error is the function's own, whatever it was raised beside."""
    torchs = TorchsRecordings(monkeypatch, ends=True)
    recorder = Recorder(torch.device("cuda"), True)

    def takes() -> None:
        if torchs.under_way:
            try:
                raise KeyError("not in a cache")
            except KeyError:
                raise torch.OutOfMemoryError("CUDA out of memory") from None

    call = recorder.wrap(takes, "test")
    call()
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        call()
    assert torchs.held == torchs.under_way == [] and recorder.remarks == [] and torchs.draws


def test_an_error_without_words_is_told_by_its_kind(refusing):
    recorder, work = refusing("")
    call = recorder.wrap(work, "test")
    call()
    call()
    assert recorder.remarks[0].endswith("(RuntimeError)")
