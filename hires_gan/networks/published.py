"""Weights that torchvision publishes: found on this machine or downloaded, and checked each time."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hires_gan.errors import Failure, UsageError
from hires_gan.progress import say


@dataclass(frozen=True)
class OptionNames:
    """What the caller's options are called, for errors to name them.

    Attributes:
        weights: Names the file of the weights: "--weights".
        download: Allows to fetch it: "--download".
        without: What to set for the network not to be needed: "recipe.loss.perceptual=0"; None where there is nothing.
    """

    weights: str
    download: str
    without: str | None = None

    def remedy(self, network: str) -> str:
        """What to do where there are no weights of a network."""
        get = f"fetch torchvision's {network} weights with {self.download}, or name their file with {self.weights}"
        return get + self.otherwise

    @property
    def otherwise(self) -> str:
        """The last part of a remedy: how to do without, if there is a way."""
        return "" if self.without is None else f", or set {self.without}"


@dataclass(frozen=True)
class PublishedWeights:
    """A file of weights, by what it is called and what its bytes are.

    Attributes:
        network: Whose weights they are, in words.
        url: Where torchvision publishes them.
        sha256: Of the file, in hexadecimal.
    """

    network: str
    url: str
    sha256: str

    @property
    def name(self) -> str:
        """What the file is called."""
        return self.url.rsplit("/", 1)[1]

    def cached(self) -> Path:
        """Where torch hub keeps them, whether they are there or not."""
        return Path(torch.hub.get_dir()) / "checkpoints" / self.name

    def obtain(self, path: Path | None, download: bool, names: OptionNames) -> dict[str, Tensor]:
        """The tensors of a file, else of torch hub's cache, else from the network if that is allowed.

        Args:
            path: The file; None for torch hub's cache.
            download: Whether the file may be fetched into the cache if it is not there; without effect beside a path.
            names: What these two options are called.

        Raises:
            UsageError: If there are no weights, or they are not the published ones.
            Failure: If a download fails.
        """
        if path is None:
            path = self.download(names) if download else self.cached()
            if not path.is_file():
                raise UsageError(f"there are no {self.network} weights in {path}; {names.remedy(self.network)}")
        return self.tensors(path, names)

    def download(self, names: OptionNames) -> Path:
        """Fetch them into torch hub's cache, if they are not there.

        Raises:
            Failure: If they cannot be had.
        """
        path = self.cached()
        if not path.is_file():
            say(f"downloading {self.url} to {path}")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                torch.hub.download_url_to_file(self.url, str(path), self.sha256, progress=sys.stderr.isatty())
            except (OSError, RuntimeError) as error:
                remedy = f"fetch it elsewhere and name it with {names.weights}{names.otherwise}"
                raise Failure(f"cannot download {self.url} ({error}); {remedy}") from error
        return path

    def tensors(self, path: Path, names: OptionNames) -> dict[str, Tensor]:
        """The tensors of a file, on the CPU.

        Raises:
            UsageError: If it is not there, or is another one.
        """
        return published_tensors(path, self.sha256, f"torchvision's {self.name}", names)


def published_tensors(path: Path, sha256: str, what: str, names: OptionNames) -> dict[str, Tensor]:
    """The tensors of a file whose bytes are the published ones; nothing in it executes.

    Args:
        path: The file.
        sha256: Of the published one, in hexadecimal.
        what: The published one, for errors.
        names: What the option is called that gives the file.

    Raises:
        UsageError: If it cannot be read, or is another one.
    """
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        what += names.otherwise
        raise UsageError(f"{names.weights}: {path} cannot be read ({error.strerror}); give {what}") from error
    if found != sha256:
        remedy = f"fetch it anew{names.otherwise}"
        raise UsageError(f"{path} is not {what}: its sha256 is {found}, not {sha256}; {remedy}")
    return read_tensors(path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """What a file in torch's format holds, on the CPU. It is there: torch hub only reads it, as tensors alone."""
    tensors: dict[str, Tensor] = torch.hub.load_state_dict_from_url(
        path.absolute().as_uri(), str(path.parent), "cpu", file_name=path.name, weights_only=True
    )
    return tensors
