"""What tells how much memory a process has taken: the peak of what came last, not of what came before."""

from __future__ import annotations

import pytest
import torch

from hires_gan.training import memory_meter
from hires_gan.training.memory_meter import ResidentMeter, meter_of

CPU = torch.device("cpu")


def test_the_peak_of_a_process_is_that_of_what_came_last():
    meter = meter_of(CPU)
    assert isinstance(meter, ResidentMeter)
    if meter.remark:
        pytest.skip(meter.remark)
    # The system may take pages of programs meanwhile, where others lack memory: not three times.
    found = [peaks_of(ResidentMeter(), (256, 64)) for _ in range(3)]
    assert any(peaks == pytest.approx([256, 64], abs=32) for peaks in found), found


def peaks_of(meter: ResidentMeter, sizes: tuple[int, ...]) -> list[float]:
    """What the meter says of tensors of so many MiB, one after the other."""
    peaks = []
    for mib in sizes:
        meter.begin()
        held_for_a_moment = torch.ones(mib * 2**18)
        del held_for_a_moment
        peaks.append(meter.peak() / 2**20)
    return peaks


def test_a_system_that_forgets_no_peak_is_told_of(monkeypatch, tmp_path):
    monkeypatch.setattr(memory_meter, "_FORGET", tmp_path / "nothing" / "clear_refs")
    meter = ResidentMeter()
    assert "does not let a process forget its peak" in meter.remark
    assert meter.peak() >= 0
