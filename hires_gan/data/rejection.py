"""The one way in which a single image is turned away while the rest goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class Rejected(Exception):  # noqa: N818 - the outcome for one image, not a failure of the command
    """This image cannot be used; the message is the reason that stands in `rejected.csv`.

    Attributes:
        picture: The name of the picture of the sample that is at fault; empty if none is more than the others.
    """

    picture = ""


@contextlib.contextmanager
def blaming(picture: str) -> Iterator[None]:
    """Note which picture of a sample is at fault if it is rejected here."""
    try:
        yield
    except Rejected as rejected:
        rejected.picture = picture
        raise
