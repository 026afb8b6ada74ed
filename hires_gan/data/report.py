"""What a `prepare` did, for people."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from hires_gan.data.ranks import ALONE, Rank

REJECTED = "rejected.csv"

_NOTES = {
    "kept": "kept their very bytes",
    "oriented": "turned upright as their EXIF data says",
    "profile_converted": "converted to sRGB by their ICC profile",
    "profile_ignored": "had an ICC profile that cannot be used: their colours were taken as sRGB",
    "alpha_flattened": "had transparent parts, laid over white",
    "first_frame": "had several frames: the first was taken",
    "enlarged": "were smaller than the resolution, and enlarged",
}


@dataclass(frozen=True)
class PrepareReport:
    """What a `prepare` did."""

    out: Path
    """The shard folder."""
    images: int
    """Images that the sources hold, or pairs of them."""
    samples: int
    """Samples in the shards that are finished."""
    rejected: int
    """Images that could not be used."""
    counts: Counter[str]
    """What was done to how many images (or samples)."""
    passed_over: Counter[str]
    """Endings of the files that are no images."""
    shards: int
    """Shards that are finished and hold samples."""
    bytes: int
    """Of all shards."""
    seconds: float
    """That this command took."""
    was_complete: bool = False
    """Whether the set was finished by an earlier start, or by another rank."""
    rank: Rank = ALONE
    """Which process this is."""
    made: int = 0
    """Shards that this process made."""
    missing: int = 0
    """Shards that other ranks are still making: the set is not finished."""
    holders: str = ""
    """Who is making them."""
    noun: str = "images"
    """What becomes of samples: images, or pairs."""

    def lines(self) -> list[str]:
        """Return the summary for people."""
        size = f"{self.samples:,} samples in {self.shards:,} shards, {self.bytes / 2**20:,.1f} MiB"
        own = f"{self.rank} made {self.made:,} shards"
        if self.missing:
            return [
                f"{self.out}: {own}, and nothing is left to take; {self.missing:,} are still being made, by "
                f"{self.holders or 'others'}: whoever is last finishes the set. If one of these has ended, start it "
                "again, or the same command with another --world-size"
            ]
        if self.was_complete:
            done = own if self.made else "nothing was done"
            return [f"{self.out} is complete{'' if self.made else ' already'}: {size}; {done}"]
        notes = [f"  {self.counts[name]:,} {note}" for name, note in _NOTES.items() if self.counts[name]]
        if self.passed_over:
            kinds = ", ".join(f"{count:,} {ending}" for ending, count in self.passed_over.most_common())
            notes.append(f"  files that are no images were passed over: {kinds}")
        if self.rejected:
            notes.append(f"  {self.rejected:,} rejected: the reasons stand in {self.out / REJECTED}")
        if not self.rank.alone:
            notes.append(f"  {own}, and finished the set")
        return [f"{self.out}: {self.images:,} {self.noun} -> {size}, in {self.seconds:.0f} s", *notes]
