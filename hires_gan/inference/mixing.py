"""Style mixing (Karras et al. 2019, section 3.1, figure 3): some layers' styles of one image, the rest of another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from hires_gan.errors import UsageError
from hires_gan.inference.images import Table, pixels_of, save_png
from hires_gan.inference.rendering import Renderer, Source
from hires_gan.inference.request import Mixing, chosen_layers
from hires_gan.progress import ProgressBar, say


def mix(renderer: Renderer, mixing: Mixing, out: Path) -> list[Path]:
    """Write the sources, every mixture, and a table with the rows' sources at its left and the columns' at its top.

    Args:
        renderer: The generator, and how images look.
        mixing: What is mixed.
        out: The folder; made if it is not there.

    Returns:
        The files, the table last.

    Raises:
        UsageError: If the generator has no styles or no such layers, or a file does not fit it.
        Failure: If the folder cannot be written.
    """
    network = renderer.styled
    if network is None:
        raise UsageError("--mix-rows is given, but Progressive GAN has no styles to mix; leave it out")
    layers = chosen_layers(mixing.layers, renderer.layers)
    rows = renderer.open_files(mixing.rows, "--mix-rows")
    columns = list(renderer.sources(mixing.columns, renderer.open_files(mixing.columns, "--mix-columns")))
    height = len(mixing.rows.seeds) + sum(file.count for file in rows)
    say(f"the columns give the styles of layers {_shown(layers)}, of {renderer.layers}; the rows all others")
    paths: list[Path] = []
    table: Table | None = None
    with ProgressBar("mix styles", (height + 1) * (len(columns) + 1) - 1) as bar:
        for i, j, source in _cells(renderer.sources(mixing.rows, rows), columns, layers):
            pixels = pixels_of(renderer.render(source))
            paths.append(out / f"{source.name}.png")
            save_png(paths[-1], pixels)
            table = table or Table(height + 1, len(columns) + 1, len(pixels))
            table.put(i, j, pixels)
            bar.advance()
    assert table is not None
    paths.append(out / "mix.png")
    save_png(paths[-1], table.pixels)
    return paths


def _cells(rows: Iterator[Source], columns: list[Source], layers: list[int]) -> Iterator[tuple[int, int, Source]]:
    """Row, column and content of each cell but the empty one in the corner."""
    for j, column in enumerate(columns, 1):
        yield 0, j, replace(column, name=f"column_{column.name}")
    for i, row in enumerate(rows, 1):
        yield i, 0, replace(row, name=f"row_{row.name}")
        for j, column in enumerate(columns, 1):
            mixed = mixture(row, column, layers)
            yield i, j, replace(mixed, name=f"row_{row.name}_column_{column.name}")


def mixture(row: Source, column: Source, layers: list[int]) -> Source:
    """The row's image, with some layers' styles taken from the column's; the noise stays the row's."""
    assert row.styles is not None
    assert column.styles is not None
    ws: Tensor = row.styles.ws.clone()
    chosen = torch.tensor(layers, device=ws.device)
    ws[:, chosen] = column.styles.ws[:, chosen]
    return replace(row, latents=None, styles=replace(row.styles, ws=ws))


def _shown(layers: list[int]) -> str:
    """[0, 1, 2, 5] -> `0-2,5`."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
