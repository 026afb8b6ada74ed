"""What the metrics of sets need of images: taken in one pass over them, by all processes, each of its own chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from hires_gan.data.waiting import Asked, Stopped
from hires_gan.evaluation.averages import NotFinite
from hires_gan.evaluation.crew import Crew, gathered_in_order
from hires_gan.evaluation.features import Extractor
from hires_gan.evaluation.preservation import content_preservation
from hires_gan.evaluation.reals import CHUNK
from hires_gan.evaluation.subjects import Shown
from hires_gan.evaluation.swd import Descriptors
from hires_gan.inference.images import from_uint8
from hires_gan.networks.vgg import VGG16Features
from hires_gan.progress import ProgressBar


class Description:
    """Takes images chunk by chunk.

    Args:
        patches: Takes those of the first of them that it is for; None for no patches.
        extractor: Gives features; None for none.
        described: Of so many images, the first ones, features are taken.
        content: Compares translations with what was translated; None for no such thing.
    """

    def __init__(
        self,
        patches: Descriptors | None,
        extractor: Extractor | None,
        described: int,
        content: VGG16Features | None = None,
    ) -> None:
        self.patches, self._extractor, self.described, self._content = patches, extractor, described, content
        self._features: list[Tensor] = []
        self._logits: list[Tensor] = []
        self._preserved: list[Tensor] = []
        self._not_finite: NotFinite | None = None
        self._finite: list[tuple[int, Tensor]] = []

    @property
    def count(self) -> int:
        """Of how many images something is to be taken."""
        needed = self.described if self._extractor is not None or self._content is not None else 0
        return max(needed, 0 if self.patches is None else self.patches.count)

    def add(self, chunk: range, shown: Shown) -> None:
        """Take what is needed of one chunk.

        Raises:
            Failure: If the feature network cannot take the images.
        """
        if shown.finite is not None:
            self._finite.append((chunk.start, shown.finite))
        if self.patches is not None:
            patched = shown.images[: max(0, self.patches.count - chunk.start)]
            if len(patched):
                self.patches.add(patched)
        images = shown.images[: max(0, self.described - chunk.start)]
        if not len(images):
            return
        self._describe(images)
        if self._content is not None and shown.inputs is not None:
            inputs = shown.inputs[: len(images)].to(images.device)
            before, after = (from_uint8(both, torch.float32) for both in (inputs, images))
            self._preserved.append(content_preservation(before, after, self._content))

    def _describe(self, images: Tensor) -> None:
        if self._extractor is None or self._not_finite is not None:
            return
        try:
            found = self._extractor(images)
        except NotFinite as error:
            self._not_finite = error
            return
        self._features.append(found.features)
        self._logits += [] if found.logits is None else [found.logits]

    def check_finite(self) -> None:
        """Make sure that all features which this process took were finite.

        Raises:
            NotFinite: If not; none were taken of later images then.
        """
        if self._not_finite is not None:
            raise self._not_finite

    def spoiled(self, count: int, crew: Crew) -> NotFinite | None:
        """Why nothing is measured of the first images; None where all of them were finite before they became bytes.

        A NaN becomes the byte 0: whoever compared bytes would measure black images.

        Args:
            count: How many of them a metric looks at.
            crew: The processes; all have to come here, and all are told of what any of them was shown.
        """
        masks = [finite[: max(0, count - start)] for start, finite in self._finite]
        own = int((~torch.cat(masks)).sum()) if masks else 0  # read here alone: a GPU waits for it once, not each time
        wrong = sum(crew.gathered(own))
        if not wrong:
            return None
        return NotFinite(
            f"{wrong} of {count} images that the network gives are not finite; evaluate an earlier checkpoint"
        )

    def lack(self, crew: Crew) -> NotFinite | None:
        """Why there are no features, as any process found; all have to come here."""
        reasons = crew.gathered(None if self._not_finite is None else str(self._not_finite))
        return next((NotFinite(reason) for reason in reasons if reason is not None), None)

    def features(self, crew: Crew) -> Tensor | None:
        """The features of all images, on the first process: float32 `[n, d]`; all have to come here."""
        return self._gathered(self._features, torch.float32, crew)

    def logits(self, crew: Crew) -> Tensor | None:
        """The logits of all images, on the first process: float32 `[n, k]`; None if the network gives none, too."""
        return self._gathered(self._logits, torch.float32, crew) if crew.any(bool(self._logits)) else None

    def preserved(self, crew: Crew) -> Tensor | None:
        """`content_preservation` of all images, on the first process: float64 `[n]`."""
        return self._gathered(self._preserved, torch.float64, crew)

    def _gathered(self, parts: Sequence[Tensor], dtype: torch.dtype, crew: Crew) -> Tensor | None:
        rows = torch.cat(list(parts)) if parts else torch.empty(0, dtype=dtype)
        return gathered_in_order(rows, self.described, CHUNK, crew)


def describe(
    title: str, description: Description, chunks: Sequence[range], images: Iterator[Shown], stopped: Asked
) -> None:
    """Take what is needed of some chunks of images.

    Args:
        title: What is done, for the progress bar.
        description: Takes it.
        chunks: The numbers of the images.
        images: Those of each chunk.
        stopped: Asked before each of them is looked at.

    Raises:
        Stopped: If `stopped` became true.
        Failure: If images cannot be had, or the feature network cannot take them.
    """
    with ProgressBar(title, sum(map(len, chunks)), lasting=False) as bar:
        for chunk, shown in zip(chunks, images, strict=True):
            if stopped():
                raise Stopped
            description.add(chunk, shown)
            bar.advance(len(chunk))
    if description.patches is not None:
        description.patches.check_complete()
