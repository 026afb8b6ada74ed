"""Fingerprints of weights: equal bits and others; and what processes with other weights end with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from forked_ranks import Ranks
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hires_gan.errors import Elsewhere, Failure
from hires_gan.training import consistency
from hires_gan.training.consistency import check_equal, fingerprints
from hires_gan.training.world import World

DTYPES = [
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float8_e4m3fn,
    torch.complex64,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]


def mark(tensor: Tensor) -> int:
    return fingerprints({"part": {"weight": tensor}})["part"]


def numbers(dtype: torch.dtype) -> Tensor:
    return torch.randint(0, 2, (4, 3, 5), generator=torch.Generator().manual_seed(1)).to(dtype)


# --- fingerprints -----------------------------------------------------------------------------------------------------


def literal_weight(place: int) -> int:
    """SplitMix64's finalizer, in Python's integers, with shifts that keep the sign as torch's do."""
    mask = 2**64 - 1

    def shifted(value: int, by: int) -> int:
        return ((value - 2**64 if value >= 2**63 else value) >> by) & mask

    mixed = (place + 1) * 0x9E3779B97F4A7C15 & mask
    mixed = (mixed ^ shifted(mixed, 30)) * 0xBF58476D1CE4E5B9 & mask
    mixed = (mixed ^ shifted(mixed, 27)) * 0x94D049BB133111EB & mask
    return (mixed ^ shifted(mixed, 31)) | 1


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20), st.sampled_from([1, 7, 2**20]))
def test_the_sum_of_bits_is_the_weighted_one_in_chunks_of_any_size(values: list[int], chunk: int) -> None:
    expected = sum(value * literal_weight(place) for place, value in enumerate(values)) % 2**64
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(consistency, "_CHUNK", chunk)
        assert int(consistency._sum_of_bits(torch.tensor(values))) % 2**64 == expected


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides_do_not_count_and_values_do(dtype: torch.dtype) -> None:
    plain = numbers(dtype)
    strided = torch.empty_strided(plain.shape, (1, 20, 4), dtype=dtype).copy_(plain)
    assert strided.stride() != plain.stride()
    assert mark(strided) == mark(plain) == mark(plain.clone())
    other = plain.clone().view(-1)
    other[17] = torch.ones((), dtype=dtype) if not bool(other[17].to(torch.bool)) else torch.zeros((), dtype=dtype)
    assert mark(other.view(plain.shape)) != mark(plain)


@given(st.integers(0, 99), st.integers(0, 31))
def test_any_single_bit_tells(place: int, bit: int) -> None:
    values = torch.randn(100, generator=torch.Generator().manual_seed(2))
    flipped = values.clone()
    flipped.view(torch.int32)[place] ^= -(2**31) if bit == 31 else 2**bit
    assert mark(flipped) != mark(values)


def test_places_names_shapes_and_dtypes_count() -> None:
    values = torch.arange(6.0)
    kinds = [values, values.flip(0), values.view(2, 3), values.view(torch.int32), values[:5], torch.zeros(6)]
    assert len({mark(kind) for kind in kinds}) == len(kinds)
    one, two = torch.ones(3), torch.zeros(3)
    assert fingerprints({"p": {"a": one, "b": two}}) != fingerprints({"p": {"a": two, "b": one}})
    assert fingerprints({"p": {"a": torch.zeros(0)}}) != fingerprints({"p": {}})


def test_not_a_number_is_compared_by_its_bits() -> None:
    nan = torch.full((3,), float("nan"))
    assert mark(nan) == mark(nan.clone())
    other = nan.clone()
    other.view(torch.int32)[1] += 1
    assert mark(other) != mark(nan)
    assert mark(torch.tensor([0.0])) != mark(torch.tensor([-0.0]))


def test_conjugates_and_negatives_that_are_not_computed_yet_count_as_what_they_are() -> None:
    values = torch.complex(torch.arange(3.0), torch.ones(3))
    assert mark(values.conj()) == mark(values.conj().resolve_conj()) != mark(values)
    assert mark(values.conj().imag) == mark(-values.imag)


# --- processes --------------------------------------------------------------------------------------------------------


class Told(World):
    """The first of some processes, whose words are given."""

    def tell(self, *prints: dict[str, int]) -> Told:
        object.__setattr__(self, "_told", [[f"host{rank}", theirs] for rank, theirs in enumerate(prints)])
        return self

    def gathered(self, value: Any) -> list[Any]:
        return self._told  # type: ignore[attr-defined, no-any-return]


def refused(*prints: dict[str, int]) -> str:
    with pytest.raises(Failure) as error:
        check_equal(Told(torch.device("cpu")).tell(*prints), {})
    return str(error.value)


def test_parts_and_ranks_that_differ_are_named() -> None:
    good, bad = {"generator": 5, "average": 6}, {"generator": 5, "average": 7}
    check_equal(Told(torch.device("cpu")).tell(good, good, good), {})
    said = refused(good, bad, good, good)
    assert "average of rank 1 differ from the rest, on host1; " in said
    assert "generator" not in said
    assert "no checkpoint is written, and the one before holds" in said
    assert "average of rank 0 differ" in refused(bad, good, good), "the majority is right, not the first"
    assert "average of ranks 0-1 differ" in refused(good, bad), "nobody knows who of two is right"
    assert "average of rank 2 differ" in refused(good, good, {"generator": 5})


def differ(world: World, folder: Path) -> int:
    """Ranks 0 and 1 have the same weights, and rank 2 has one bit of a moment that is another one."""
    weights = {"weight": torch.arange(12.0).view(3, 4)}
    check_equal(world, fingerprints({"generator": weights}))
    moments = {"weight.exp_avg": torch.arange(12.0)}
    if world.rank == 2:
        moments["weight.exp_avg"].view(torch.int32)[3] ^= 1
    try:
        check_equal(world, fingerprints({"generator": weights, "generator.optimizer": moments}))
    except Failure as error:
        assert world.first
        (folder / "failure").write_text(str(error))
        return 1
    except Elsewhere:
        return 3
    return 0


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Ranks]:
    with closing(Ranks(tmp_path)) as found:
        yield found


def test_processes_with_other_weights_end_before_the_checkpoint(processes: Ranks) -> None:
    processes.start(3, differ)
    for rank, code in enumerate((1, 3, 3)):
        processes.ended(rank, code)
    assert ": generator.optimizer of rank 2 differ from the rest, on " in (processes.folder / "failure").read_text()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_devices_do_not_count(dtype: torch.dtype) -> None:
    plain = numbers(dtype)
    assert mark(plain.cuda()) == mark(plain)
    both = {"p": {"a": plain, "b": plain.cuda()}}
    assert fingerprints(both) == fingerprints({"p": {"a": plain.cuda(), "b": plain}})
