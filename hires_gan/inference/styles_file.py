"""Styles in a file: safetensors with `ws`, and the layers' noise where it belongs to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hires_gan.errors import Failure, UsageError
from hires_gan.inference.files import write_whole

STYLES = "ws"
_NOISE = "noise."


@dataclass(frozen=True)
class Styles:
    """One image in W+.

    Attributes:
        ws: `[1, num_ws, w_size]`, before truncation.
        noise: `[1, 1, h, w]` for each layer that has noise of its own; None for the generator's constant noise.
    """

    ws: Tensor
    noise: tuple[Tensor, ...] | None = None


def write_styles(path: Path, styles: Styles) -> None:
    """Write one image's styles, and its noise; equal styles are equal files.

    Raises:
        Failure: If the file cannot be written.
    """
    tensors = {f"{_NOISE}{number}": part for number, part in enumerate(styles.noise or ())} | {STYLES: styles.ws}
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_whole(path, lambda partial: save_file(plain, partial))


class StylesFile:
    """A file of styles that fit a generator; its rows are read one by one.

    Args:
        path: The file.
        num_ws: How many layers of the generator take a style.
        w_size: Dimensions of W.
        noise_shapes: Height and width of each layer's noise.

    Raises:
        UsageError: If it is not there, holds no styles, or those of another generator.
    """

    def __init__(self, path: Path, num_ws: int, w_size: int, noise_shapes: Sequence[tuple[int, int]]) -> None:
        self.path = path
        shapes = self._shapes()
        if STYLES not in shapes:
            raise UsageError(
                f"{path} holds no tensor {STYLES!r}, but {', '.join(sorted(shapes)) or 'nothing'}; give a file that "
                f"`hires-gan project` wrote, or one with {STYLES}: [n, {num_ws}, {w_size}]"
            )
        found = shapes[STYLES]
        if len(found) != 3 or found[0] < 1 or tuple(found[1:]) != (num_ws, w_size):
            raise UsageError(
                f"{path} holds styles of {list(found)}; this generator takes [n, {num_ws}, {w_size}]: use the "
                f"checkpoint that they were made for"
            )
        self.count = found[0]
        self._noise = self._checked_noise(shapes, noise_shapes)

    def rows(self, device: torch.device, dtype: torch.dtype) -> Iterator[Styles]:
        """Each row's styles, in order.

        Args:
            device: Where they shall be.
            dtype: Of the result.

        Raises:
            Failure: If the file is damaged, or holds values that are not finite.
        """
        for row in range(self.count):
            with safe_open(self.path, framework="pt") as file:
                ws = file.get_slice(STYLES)[row : row + 1].to(device, dtype)
                noise = [file.get_slice(name)[row : row + 1].to(device, dtype) for name in self._noise]
            if not all(bool(tensor.isfinite().all()) for tensor in (ws, *noise)):
                raise Failure(f"{self.path} holds values that are not finite, in row {row}; make it anew")
            yield Styles(ws, tuple(noise) or None)

    def _shapes(self) -> dict[str, list[int]]:
        try:
            with safe_open(self.path, framework="pt") as file:
                return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - no mapping
        except FileNotFoundError:
            raise UsageError(f"there is no file {self.path}; give one that `hires-gan project` wrote") from None
        except (SafetensorError, OSError) as error:
            raise UsageError(
                f"{self.path} is no whole safetensors file ({error}); give one that `hires-gan project` wrote"
            ) from error

    def _checked_noise(self, shapes: dict[str, list[int]], expected: Sequence[tuple[int, int]]) -> list[str]:
        """The names of the layers' noise: none, or those of the first layers, of the right shapes."""
        names = [f"{_NOISE}{number}" for number in range(len(shapes) - 1)]
        if len(names) > len(expected) or any(name not in shapes for name in names):
            others = ", ".join(sorted(set(shapes) - {STYLES} - {f"{_NOISE}{n}" for n in range(len(expected))}))
            raise UsageError(
                f"{self.path} holds {others or 'noise for some of the layers'}; beside {STYLES}, {_NOISE}0 to "
                f"{_NOISE}{len(expected) - 1} are allowed, from the first on"
            )
        for name, (h, w) in zip(names, expected, strict=False):
            if list(shapes[name]) != [self.count, 1, h, w]:
                raise UsageError(
                    f"{self.path} holds {name} of {list(shapes[name])}; this generator takes "
                    f"[{self.count}, 1, {h}, {w}]: use the checkpoint that it was made for"
                )
        return names
