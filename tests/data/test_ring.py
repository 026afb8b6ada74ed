"""Batches in shared memory."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
import torch

from hires_gan.data.ring import Ring


def descriptors():
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def test_slots_are_whole_pages_and_do_not_overlap():
    ring = Ring(3, 2 * 40 * 40 * 3)
    assert ring.slot_bytes == 12288
    for slot in range(3):
        ring.images(slot, 2, 40).fill_(slot + 1)
    for slot in range(3):
        images = ring.images(slot, 2, 40)
        assert images.shape == (2, 40, 40, 3)
        assert images.dtype == torch.uint8
        assert (images == slot + 1).all()
    assert ring.images(1, 2, 40).data_ptr() - ring.images(0, 2, 40).data_ptr() == 12288


def test_a_slot_holds_any_smaller_batch_and_no_larger_one():
    ring = Ring(2, 4096)
    assert ring.images(1, 5, 16).permute(0, 3, 1, 2).is_contiguous(memory_format=torch.channels_last)
    assert ring.images(1, 85, 4).shape == (85, 4, 4, 3)
    with pytest.raises(AssertionError):
        ring.images(1, 86, 4)


def test_empty_batches_and_an_empty_ring():
    for ring in (Ring(2, 4096), Ring(2, 0)):
        assert ring.images(1, 0, 64).shape == (0, 64, 64, 3)


def test_a_view_outlives_the_ring_and_nothing_else_does():
    before = descriptors()
    ring = Ring(2, 3 * 16 * 16)
    images = ring.images(1, 1, 16).fill_(9)
    del ring
    assert (images == 9).all()
    del images
    assert descriptors() == before
    assert "hires_gan_ring" not in Path("/proc/self/maps").read_text()
