"""What is asked of the input and what it gives: the words that the loader and its decoders share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from hires_gan.data.replacement import Report


@dataclass(frozen=True)
class Request:
    """The samples that one process shows in one step.

    Attributes:
        samples: Consecutive sample numbers of the run; may be empty.
        resolution: The side at which they are wanted.
    """

    samples: range
    resolution: int

    @property
    def size(self) -> int:
        """Bytes of the decoded images of one domain."""
        return len(self.samples) * self.resolution * self.resolution * 3


@dataclass(frozen=True)
class Loaded:
    """A decoded batch. On the CPU its memory is the loader's: it is overwritten once the next batch is asked for.

    Attributes:
        samples: The n sample numbers.
        domains: What the images show: `image` alone for plain data.
        images: uint8 `[k * n, 3, r, r]` in channels_last memory, for k domains: the n images of the first one, then
            those of the second; on a GPU they are there for whatever is launched later on the stream that was the
            current one when the batch was asked for.
        labels: int64 `[n]` on the CPU, or None for data without labels or in domains.
    """

    samples: range
    domains: tuple[str, ...]
    images: Tensor
    labels: Tensor | None


@dataclass(frozen=True)
class Decoded:
    """What a decoder makes of a request.

    Attributes:
        images: As in `Loaded`.
        report: What was replaced, and why.
    """

    images: Tensor
    report: Report


class BatchDecoder(Protocol):
    """Decodes batches ahead; they are finished in the order in which they were begun."""

    @property
    def slots(self) -> int:
        """How many batches may be begun before the first of them is finished; one of them is the caller's."""

    @property
    def pids(self) -> Sequence[int]:
        """The processes that decode, besides this one."""

    def begin(self, request: Request) -> int:
        """Start on a batch, and return its number; a caller may leave batches unfinished and begin others."""

    def finish(self, turn: int) -> Decoded:
        """Wait for batch number `turn`.

        Raises:
            Failure: If a sample cannot be read, or what decodes died or hangs.
            Stopped: If nobody wants it any more, see `waiting`.
        """

    def close(self) -> None:
        """End what decodes."""
