"""The one way in which a single image is turned away while the rest goes on."""

from __future__ import annotations


class Rejected(Exception):  # noqa: N818 - the outcome for one image, not a failure of the command
    """This image cannot be used; the message is the reason that stands in `rejected.csv`."""
