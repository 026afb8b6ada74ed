"""What only a GPU can show of DALI: its JPEG decoder against torchvision, and images that stay on the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from input_definition import Definition, noise_files, write_columns, write_shards
from PIL import Image

from hires_gan.data.domains import open_data
from hires_gan.data.loader import Loader, Request, check_decoder
from hires_gan.data.settings import DataSettings
from hires_gan.data.shards import ShardSet
from hires_gan.training.feed import Feed

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
pytest.importorskip("nvidia.dali")

DEVICE = torch.device("cuda")
SEED, SIDE, COUNT = 5, 256, 24
LARGE, FEW = 1024, 8


def jpeg(number: int, subsampling: int, side: int = SIDE) -> bytes:
    """Smooth colours, edges and a little noise, every one different: what a photograph has."""
    import io

    y, x = np.mgrid[0:side, 0:side] / side
    waves = [np.sin((number + 3) * (x * a + y * b)) for a, b in ((1, 2), (2, -1), (1.5, 1))]
    pixels = 128 + 90 * np.stack(waves, -1)
    pixels[side // 4 : side // 2, side // 3 :] = (200, 20 + number, 60)
    pixels += np.random.default_rng(number).normal(0, 4, pixels.shape)
    buffer = io.BytesIO()
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    image.save(buffer, "JPEG", quality=95, subsampling=subsampling)
    return buffer.getvalue()


def loader_of(folder: Path, largest: int, **settings: Any) -> Loader:
    data = DataSettings(**{"shards": str(folder), "decoder": "dali", "mirror": True, **settings})
    return Loader(ShardSet(folder), data, SEED, largest, device=DEVICE)


def images(folder: Path, wanted: list[Request], **settings: Any) -> list[torch.Tensor]:
    with loader_of(folder, max(request.size for request in wanted), **settings) as loader:
        return [batch.images.clone() for batch in loader.batches(iter(wanted))]


@pytest.mark.parametrize("load", [0.0, 0.65, 1.0])
@pytest.mark.parametrize(("name", "subsampling"), [("4:4:4", 0), ("4:2:0", 2)])
@pytest.mark.parametrize(("side", "count"), [(SIDE, COUNT), (LARGE, FEW)])
def test_the_gpu_decodes_to_within_a_grey_level(tmp_path, record_property, side, count, name, subsampling, load):
    folder = write_shards(tmp_path / "set", [jpeg(number, subsampling, side) for number in range(count)], side)
    wanted = [Request(range(count), side), Request(range(count, 2 * count), side // 4)]
    there = images(folder, wanted, hw_decoder_load=load)
    here = images(folder, wanted, decoder="torchvision", workers=0)
    for request, one, other in zip(wanted, there, here, strict=True):
        assert one.device.type == "cuda"
        assert one.is_contiguous(memory_format=torch.channels_last)
        difference = (one.cpu().int() - other.int()).abs()
        mean, most = difference.float().mean().item(), int(difference.max())
        print(f"{name}, {request.resolution} pixels, hw_decoder_load {load}: mean {mean:.4f}, maximum {most}")
        record_property(f"{name}/{request.resolution}", f"mean {mean:.4f}, maximum {most}")
        assert mean <= 1


def test_a_png_is_the_same_to_the_bit(tmp_path):
    files = noise_files(COUNT, 64)
    folder = write_shards(tmp_path / "set", files, 64)
    definition = Definition(files, [0] * COUNT, SEED, True)
    wanted = [Request(range(k * 9, k * 9 + 9), side) for k, side in enumerate((64, 8, 64, 16))]
    for request, one in zip(wanted, images(folder, wanted), strict=True):
        assert np.array_equal(one.cpu().numpy(), definition.images(request.samples, request.resolution))


def test_images_are_there_for_the_stream_that_asks(tmp_path):
    """Many batches through few slots, with a GPU that is kept busy: what is read is what the CPU reads."""
    files = noise_files(COUNT, 64)
    folder = write_shards(tmp_path / "set", files, 64)
    definition = Definition(files, [0] * COUNT, SEED, True)
    wanted = [Request(range(k * 16, k * 16 + 16), (64, 32)[k % 2]) for k in range(40)]
    work, kept = torch.randn(2048, 2048, device=DEVICE), []
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), loader_of(folder, wanted[0].size, prefetch=2) as loader:
        for batch in loader.batches(iter(wanted)):
            work = work @ work.softmax(0)
            kept.append(batch.images.float())  # launched only: nothing here waits for the GPU
    torch.cuda.synchronize()
    for request, one in zip(wanted, kept, strict=True):
        assert np.array_equal(one.byte().cpu().numpy(), definition.images(request.samples, request.resolution))


def test_the_feed_takes_them_as_they_are(tmp_path):
    files = noise_files(COUNT, 64)
    labels = [row % 3 for row in range(COUNT)]
    folder = write_shards(tmp_path / "set", files, 64, labels)
    definition = Definition(files, labels, SEED, True)
    wanted = [Request(range(k * 16, k * 16 + 16), (64, 32)[k % 2]) for k in range(20)]
    taken = []
    with loader_of(folder, wanted[0].size) as loader:
        feed = Feed(loader.batches(iter(wanted)), DEVICE, torch.float32)
        for _ in wanted:
            batch = feed.take()
            taken.append(((batch.images + 1) * 127.5, batch.labels))
            feed.copy_ahead()
    for request, (one, classes) in zip(wanted, taken, strict=True):
        pixels = one.round().byte().cpu().numpy()
        assert np.array_equal(pixels, definition.images(request.samples, request.resolution))
        assert classes.device.type == "cuda"
        assert classes.tolist() == definition.classes(request.samples)


def test_bad_files_are_replaced_on_the_gpu_too(tmp_path):
    """A header alone, and half a file, of which a decoder may make half an image."""
    files = [jpeg(number, 0) for number in range(COUNT)]
    good = list(files)
    files[7], good[7] = files[7][:200], files[8]
    files[15], good[15] = files[15][: len(files[15]) // 2], files[16]
    bad = write_shards(tmp_path / "bad", files, SIDE)
    wanted = [Request(range(8 * k, 8 * k + 8), SIDE) for k in range(6)]
    with loader_of(bad, wanted[0].size, max_corrupt=0.1) as loader:
        there = [batch.images.clone() for batch in loader.batches(iter(wanted))]
        assert len(loader.corrupt) == 2
    here = images(write_shards(tmp_path / "good", good, SIDE), wanted)
    for one, other in zip(there, here, strict=True):
        assert (one.int() - other.int()).abs().float().mean() <= 1


@pytest.mark.parametrize("paired", [True, False])
def test_domains_are_the_definition_on_the_gpu_too(tmp_path, paired):
    """Pairs, whose images come out of DALI together, and unpaired sets of other sides; whole, halved, in parts."""
    a, b = noise_files(COUNT, 64, 1), noise_files(COUNT, 64 if paired else 128, 2)
    if paired:
        data = {"shards": str(write_columns(tmp_path / "set", {"a": a, "b": b}, 64))}
    else:
        folders = {"a": write_shards(tmp_path / "a", a, 64), "b": write_shards(tmp_path / "b", b, 128)}
        data = {"domains": {name: str(folder) for name, folder in folders.items()}}
    domains = [Definition(a, [], SEED, True), Definition(b, [], SEED, True, 0 if paired else 1)]
    wanted = [Request(range(k * 40, k * 40 + 40), side) for k, side in enumerate((64, 8, 32, 64))]
    settings = DataSettings(decoder="dali", mirror=True, **data)
    for requests in (wanted, wanted[1:2]):  # the second is small, and goes through DALI in parts
        largest = max(request.size for request in requests)
        with Loader(open_data(settings), settings, SEED, largest, device=DEVICE) as loader:
            for request, batch in zip(requests, loader.batches(iter(requests)), strict=True):
                expected = [one.images(request.samples, request.resolution) for one in domains]
                assert batch.images.is_contiguous(memory_format=torch.channels_last)
                assert np.array_equal(batch.images.cpu().numpy(), np.concatenate(expected))


def test_dali_cpu_beside_a_gpu_is_torchvisions_image(tmp_path):
    folder = write_shards(tmp_path / "set", [jpeg(number, 2) for number in range(COUNT)], SIDE)
    wanted = [Request(range(COUNT), SIDE)]
    (one,), (other,) = images(folder, wanted, decoder="dali-cpu"), images(folder, wanted, decoder="torchvision")
    assert one.device.type == "cpu"
    assert torch.equal(one, other)


def test_where_it_decodes_is_said(tmp_path, capfd):
    folder = write_shards(tmp_path / "set", noise_files(2, 16), 16)
    check_decoder(DataSettings(shards=str(folder), decoder="dali"), ShardSet(folder), DEVICE)
    said = capfd.readouterr().err
    assert "decodes on cuda" in said
    assert "these images are PNG files, which DALI decodes on the CPU" in said
