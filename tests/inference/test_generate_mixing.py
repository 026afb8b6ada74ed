"""Tables of mixed styles: which layers come from where."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from style_checkpoints import style_network, write_style_checkpoint

import hires_gan
from hires_gan.errors import UsageError
from hires_gan.inference.generate import answer, generate
from hires_gan.inference.images import to_uint8
from hires_gan.inference.request import Given, Look, Request, chosen_layers, parse_layers, parse_mixing
from hires_gan.inference.styles_file import Styles, write_styles
from hires_gan.randomness import Purpose, RandomSource


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> str:
    return str(write_style_checkpoint(tmp_path_factory.mktemp("mixing"), side=32).folder)


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path))


def mix(saved: str, rows: str, columns: str, layers: str, out: Path, look: Look | None = None) -> list[Path]:
    return answer(saved, Request(Given(), look or Look(), parse_mixing(rows, columns, layers)), out)


def styles_of(network, seed: int) -> torch.Tensor:
    return network.styles(RandomSource(seed).normal(Purpose.LATENT_SAMPLE, torch.zeros(1, dtype=torch.int64), (8,)))


@pytest.mark.parametrize(("layers", "taken"), [("coarse", range(4)), ("middle", range(4, 8)), ("1,5-6", (1, 5, 6))])
def test_each_mixture_takes_the_layers_that_are_named(layers, taken, saved, tmp_path):
    files = mix(saved, "0-1", "7-9", layers, tmp_path)
    network = hires_gan.load(saved)
    assert len(files) == 3 + 2 + 6 + 1
    for row, column in itertools.product((0, 1), (7, 8, 9)):
        ws = styles_of(network, row).clone()
        for layer in taken:
            ws[:, layer] = styles_of(network, column)[:, layer]
        expected = to_uint8(network.synthesis(ws))[0].permute(1, 2, 0).numpy()
        name = f"row_seed{row:010d}_column_seed{column:010d}.png"
        assert np.array_equal(pixels(tmp_path / name), expected)


def test_the_table_has_the_sources_at_its_edges(saved, tmp_path):
    files = mix(saved, "3,4", "5", "middle", tmp_path / "mix")
    sources = generate(saved, [3, 4, 5], tmp_path / "sources")
    table = pixels(files[-1])
    assert files[-1].name == "mix.png"
    assert table.shape == (3 * 32, 2 * 32, 3)
    assert (table[:32, :32] == 255).all()
    assert np.array_equal(table[:32, 32:], pixels(sources[2]))
    assert np.array_equal(table[32:64, :32], pixels(sources[0]))
    assert np.array_equal(table[64:, :32], pixels(sources[1]))
    assert np.array_equal(table[64:, 32:], pixels(tmp_path / "mix" / "row_seed0000000004_column_seed0000000005.png"))


def test_all_layers_make_the_columns_image_and_truncation_holds_for_all(saved, tmp_path):
    files = mix(saved, "3", "5", "0-7", tmp_path / "mix", Look(0.5))
    alone = generate(saved, [5], tmp_path / "alone", truncation=0.5)
    assert files[2].read_bytes() == files[0].read_bytes() == alone[0].read_bytes()


def test_styles_from_a_file_are_mixed_like_seeds(saved, tmp_path):
    network = hires_gan.load(saved)
    write_styles(tmp_path / "found.safetensors", Styles(styles_of(network, 3)))
    by_file = mix(saved, str(tmp_path / "found.safetensors"), "5", "coarse", tmp_path / "file")
    by_seed = mix(saved, "3", "5", "coarse", tmp_path / "seed")
    assert by_file[-1].read_bytes() == by_seed[-1].read_bytes()
    turned = mix(saved, "5", str(tmp_path / "found.safetensors"), "4-7", tmp_path / "turned")
    assert turned[-2].read_bytes() == by_seed[-2].read_bytes()  # the coarse ones of 5 and the others of 3


def test_layers_by_name_and_number():
    assert chosen_layers(parse_layers("coarse"), 18) == list(range(4))
    assert chosen_layers(parse_layers("middle"), 18) == list(range(4, 8))
    assert chosen_layers(parse_layers("fine"), 18) == list(range(8, 18))
    assert chosen_layers(parse_layers("middle"), 6) == [4, 5]
    assert chosen_layers(parse_layers("3,1-2,3"), 6) == [1, 2, 3]
    with pytest.raises(UsageError, match="--mix-layers names layer 6; the generator has the layers 0 to 5"):
        chosen_layers(parse_layers("2-6"), 6)
    with pytest.raises(UsageError, match="--mix-layers is fine, which are the layers from 8 on; .* 0 to 5"):
        chosen_layers(parse_layers("fine"), 6)


def test_layers_that_have_not_grown_yet_cannot_be_mixed(tmp_path):
    young = str(write_style_checkpoint(tmp_path / "young", "stylegan", grown=8).folder)
    with pytest.raises(UsageError, match="--mix-layers is middle, .* the generator has the layers 0 to 3"):
        mix(young, "0", "1", "middle", tmp_path / "out")
    assert pixels(mix(young, "0", "1", "2-3", tmp_path / "out")[-1]).shape == (16, 16, 3)


def test_the_networks_of_the_tests_mix_visibly():
    network = style_network(side=32)
    a, b = styles_of(network, 0), styles_of(network, 1)
    mixed = network.mix(a, b, torch.tensor([4]))
    assert not torch.equal(network.synthesis(mixed), network.synthesis(a))
    assert not torch.equal(network.synthesis(mixed), network.synthesis(b))
