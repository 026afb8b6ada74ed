"""What `bench input` found: medians, shares and ratios, as a table and as sentences."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hires_gan.bench.input_contestants import Contestant, Device, Kind, Measurement
from hires_gan.bench.input_peers import PIL_TO_UINT8

Rounds = Sequence[Mapping[str, Measurement]]


@dataclass(frozen=True)
class Row:
    """One line of the result: medians over the rounds."""

    name: str
    kind: Kind
    images_per_second: float
    of_loader: float | None
    """Its rate by that of our first loader, in the same round."""
    of_limit: float | None
    """Its rate by that of the fastest decoder alone on its device, in the same round; None for reading alone, and where
    no decoder of that device took part."""
    cpu_seconds_per_image: float
    """Of all its processes together."""
    first_batch_seconds: float | None
    """From making it to its first batch, the start of its processes included."""
    memory_mib: float
    """Proportional set size of all its processes."""
    rates: tuple[float, ...]
    """Images per second, round by round."""
    device: Device = "cpu"
    """Where it decodes."""


@dataclass(frozen=True)
class Result:
    """One table."""

    resolution: int
    images: str
    rows: list[Row]


def rows_of(contestants: Sequence[Contestant], rounds: Rounds) -> list[Row]:
    """Reduce the rounds to medians.

    Args:
        contestants: Who took part, in the order of the table.
        rounds: What each measured, by its name; one that is missing in any of them is left out.
    """
    there = [one for one in contestants if all(one.name in found for found in rounds)]
    limits = sorted((one for one in there if one.kind == "limit"), key=lambda one: _median(rounds, one.name))
    best = {one.device: one.name for one in limits}
    loader = next((one.name for one in there if one.kind == "loader"), None)
    return [_row(one, rounds, loader, best.get(one.device)) for one in there]


def _median(rounds: Rounds, name: str) -> float:
    return statistics.median(found[name].images_per_second for found in rounds)


def _ratio(rounds: Rounds, name: str, other: str | None) -> float | None:
    if other is None:
        return None
    return statistics.median(found[name].images_per_second / found[other].images_per_second for found in rounds)


def _row(contestant: Contestant, rounds: Rounds, loader: str | None, best: str | None) -> Row:
    name, disk = contestant.name, contestant.kind == "disk"
    found = [one[name] for one in rounds]
    firsts = [one.first_batch_seconds for one in found if one.first_batch_seconds is not None]
    return Row(
        name,
        contestant.kind,
        _median(rounds, name),
        _ratio(rounds, name, loader),
        None if disk else _ratio(rounds, name, best),
        statistics.median(one.cpu_seconds_per_image for one in found),
        statistics.median(firsts) if firsts else None,
        statistics.median(one.memory_mib for one in found),
        tuple(round(one.images_per_second, 2) for one in found),
        contestant.device,
    )


def figures(result: Result) -> dict[str, dict[str, float]]:
    """What is promised of our loader, as it was found: for each decoder, as far as it was measured.

    Returns:
        By the loader's name: `of_best_decoder`, its share of the fastest decoder alone on its device, and
        `of_pil_to_uint8`, its rate by that of a DataLoader over a folder with PIL to uint8.
    """
    peer = next((row for row in result.rows if row.name == PIL_TO_UINT8), None)
    found: dict[str, dict[str, float]] = {}
    for row in result.rows:
        if row.kind == "loader":
            shares = {} if row.of_limit is None else {"of_best_decoder": row.of_limit}
            if peer is not None:
                pairs = zip(row.rates, peer.rates, strict=True)
                shares["of_pil_to_uint8"] = statistics.median(ours / theirs for ours, theirs in pairs)
            found[row.name] = shares
    return found


def table(results: Sequence[Result]) -> list[str]:
    """The results as lines for people: a table for each resolution, and behind several of them one over all."""
    lines = [line for result in results for line in _lines(result)]
    return lines + _over_all(results) if len(results) > 1 else lines


def _over_all(results: Sequence[Result]) -> list[str]:
    """Images per second of the decoders and of our loader with each of them, by resolution."""
    kinds = {row.name: row.kind for result in results for row in result.rows}
    ours = [name for name, kind in kinds.items() if kind in ("limit", "loader")]
    rates = [{row.name: row.images_per_second for row in result.rows} for result in results]
    lines = [f"{'images/s at':36}" + "".join(f"{f'{one.resolution}x{one.resolution}':>12}" for one in results)]
    for name in ours:
        lines.append(
            f"{name:36}" + "".join(f"{found[name]:>12.1f}" if name in found else f"{'':12}" for found in rates)
        )
    return lines


def _lines(result: Result) -> list[str]:
    head = f"{'images/s':>10}{'of loader':>11}{'of limit':>10}{'CPU ms/image':>14}{'first batch':>13}{'memory':>12}"
    lines = [f"{f'{result.resolution}x{result.resolution}':36}{head}"]
    for row in result.rows:
        first = "" if row.first_batch_seconds is None else f"{row.first_batch_seconds:.1f} s"
        ratio = "" if row.of_loader is None else f"{row.of_loader:.2f}"
        share = "" if row.of_limit is None else f"{row.of_limit:.1%}"
        lines.append(
            f"{row.name:36}{row.images_per_second:>10.1f}{ratio:>11}{share:>10}"
            f"{row.cpu_seconds_per_image * 1e3:>14.2f}{first:>13}{row.memory_mib:>8.0f} MiB"
        )
    return lines + _sentences(result)


def _sentences(result: Result) -> list[str]:
    limits = sorted((row for row in result.rows if row.kind == "limit"), key=lambda row: row.images_per_second)
    best, devices = {row.device: row for row in limits}, {row.name: row.device for row in result.rows}
    sentences = []
    for name, found in figures(result).items():
        parts = []
        if "of_best_decoder" in found:
            limit = best[devices[name]]
            rate = f"{limit.name}, {limit.images_per_second:.1f} images/s"
            parts.append(f"{found['of_best_decoder']:.1%} of the best decoder ({rate})")
        if "of_pil_to_uint8" in found:
            parts.append(f"{found['of_pil_to_uint8']:.2f} times the DataLoader over a folder with PIL to uint8")
        if parts:
            sentences.append(f"{name}: {'; '.join(parts)}")
    return sentences
