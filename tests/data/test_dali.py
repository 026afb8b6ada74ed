"""DALI as a decoder: on the CPU it gives what torchvision gives, to the bit, and what cannot be is said."""

from __future__ import annotations

import gc
import io
import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from input_definition import Definition, noise_files, write_shards
from PIL import Image
from test_decoders import FILES, file, scene

from hires_gan.data import dali, dali_pipeline
from hires_gan.data.dali import same_everywhere
from hires_gan.data.dali_pipeline import DaliPipeline, OnHost, check_driver, check_installed, first_line
from hires_gan.data.decoders import Undecodable
from hires_gan.data.loader import Loader, Request, check_decoder
from hires_gan.data.settings import DataSettings
from hires_gan.data.shards import ShardSet
from hires_gan.data.stream_reader import StreamReader
from hires_gan.errors import Failure, UsageError

pytest.importorskip("nvidia.dali")

COUNT, SIDE, SEED = 37, 16, 5
NOISE = noise_files(COUNT, SIDE)
LABELS = [row * 7 % 3 for row in range(COUNT)]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards") / "set", NOISE, SIDE, LABELS)


def loader_of(folder: Path, largest: int = 60 * SIDE * SIDE * 3, **settings: Any) -> Loader:
    data = DataSettings(**{"shards": str(folder), "decoder": "dali-cpu", "threads": 2, "mirror": True, **settings})
    return Loader(ShardSet(folder), data, SEED, largest)


def images(folder: Path, wanted: list[Request], **settings: Any) -> list[torch.Tensor]:
    with loader_of(folder, max(request.size for request in wanted), **settings) as loader:
        return [batch.images.clone() for batch in loader.batches(iter(wanted))]


def assert_same(folder: Path, wanted: list[Request], **settings: Any) -> None:
    ours = images(folder, wanted, **settings)
    theirs = images(folder, wanted, **settings, decoder="torchvision", workers=0)
    for request, one, other in zip(wanted, ours, theirs, strict=True):
        assert one.shape == (len(request.samples), 3, request.resolution, request.resolution)
        assert one.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(one, other)


# --- the same pixels --------------------------------------------------------------------------------------------------


def kinds() -> dict[str, bytes]:
    rgba = np.dstack([scene(), np.arange(64 * 64).reshape(64, 64).astype(np.uint8)])
    turned = Image.Exif()
    turned[274] = 6
    return FILES | {
        "4:2:2": file(scene(), quality=90, subsampling=1),
        "optimised": file(scene(), quality=75, optimize=True),
        "restarts": file(scene(), quality=90, restart_marker_blocks=3),
        "turned": file(scene(), exif=turned),
        "transparent": file(rgba, "PNG"),
        "palette": png_of(Image.fromarray(scene()).convert("P")),
        "grey and transparent": png_of(Image.fromarray(scene()).convert("LA")),
        "interlaced": file(scene(), "PNG", interlace=1),
    }


def png_of(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_every_kind_of_file_is_torchvisions_image(tmp_path):
    files = list(kinds().values())
    write_shards(tmp_path / "set", files, 64)
    wanted = [Request(range(k, k + 7), resolution) for k, resolution in enumerate((64, 32, 8, 4, 64))]
    for mirror in (False, True):
        assert_same(tmp_path / "set", [*wanted, Request(range(len(files)), 64)], mirror=mirror)


@pytest.mark.parametrize("prefetch", [1, 3])
def test_batches_and_resolutions_that_change_are_the_definition(folder, prefetch):
    definition = Definition(NOISE, LABELS, SEED, True)
    sizes = [(4, 12), (4, 1), (8, 20), (8, 0), (16, 37), (16, 60), (16, 4), (2, 60), (16, 0)]
    starts = itertools.accumulate((size for _, size in sizes), initial=10**12)
    wanted = [Request(range(first, first + size), side) for first, (side, size) in zip(starts, sizes, strict=False)]
    with loader_of(folder, prefetch=prefetch) as loader:
        for request, batch in zip(wanted, loader.batches(iter(wanted)), strict=True):
            assert batch.samples == request.samples
            assert np.array_equal(batch.images.numpy(), definition.images(request.samples, request.resolution))
            assert batch.labels.tolist() == definition.classes(request.samples)


def test_small_batches_of_large_images_go_through_in_parts(tmp_path):
    write_shards(tmp_path / "set", noise_files(50, 128), 128)
    assert_same(tmp_path / "set", [Request(range(50 * k, 50 * k + 50), 4) for k in range(3)])


def test_levels_are_read_where_they_suffice(tmp_path):
    small = noise_files(COUNT, 8, seed=8)
    write_shards(tmp_path / "set", NOISE, SIDE, levels=[{8: file} for file in small])
    for side, read in ((16, NOISE), (8, small), (4, small)):
        definition = Definition(read, LABELS, SEED, True)
        (got,) = images(tmp_path / "set", [Request(range(20), side)])
        assert np.array_equal(got.numpy(), definition.images(range(20), side))


@pytest.mark.shared
def test_real_photographs(shared_data, tmp_path):
    paths = sorted(path for path in shared_data.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg"})[:24]
    files = []
    for number, path in enumerate(paths):
        with Image.open(path) as photograph:
            square = photograph.convert("RGB").resize((512, 512), Image.Resampling.BOX)
        files.append(file(np.asarray(square), quality=95, subsampling=(0, 2)[number % 2]))
    write_shards(tmp_path / "set", files, 512)
    assert_same(tmp_path / "set", [Request(range(12 * k, 12 * k + 12), side) for k, side in enumerate((512, 512, 64))])


# --- ahead, and to the end --------------------------------------------------------------------------------------------


def numbers(step: int = 6) -> Iterator[Request]:
    return (Request(range(k, k + step), SIDE) for k in itertools.count(0, step))


def test_batches_are_decoded_while_the_caller_rests(folder):
    with loader_of(folder, prefetch=4) as loader:
        stream = loader.batches(numbers())
        next(stream)
        deadline = time.monotonic() + 30
        while loader.decoder._line.progress < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert loader.decoder._line.progress == 5


def test_an_iteration_left_half_way_does_not_disturb_the_next(folder):
    definition = Definition(NOISE, LABELS, SEED, True)
    with loader_of(folder) as loader:
        for attempt in range(12):
            for _ in zip(range(attempt % 4), loader.batches(numbers(50)), strict=False):
                pass
            wanted = [Request(range(9 * k, 9 * k + 9), 8) for k in range(6)]
            for request, batch in zip(wanted, loader.batches(iter(wanted)), strict=True):
                assert np.array_equal(batch.images.numpy(), definition.images(request.samples, 8))


def test_closing_in_the_middle_ends_the_threads(folder):
    before = {thread.name for thread in threading.enumerate()}
    for taken in (0, 1, 5):
        with loader_of(folder) as loader:
            stream = loader.batches(numbers())
            for _ in range(taken):
                next(stream)
            assert "dali" in {thread.name for thread in threading.enumerate()}
        loader.close()  # again
        deadline = time.monotonic() + 10
        while {thread.name for thread in threading.enumerate()} - before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert {thread.name for thread in threading.enumerate()} <= before


@pytest.mark.parametrize(("workers", "there"), [(0, 1), (1, 1), (5, 5)])
def test_as_many_threads_read_as_there_would_be_workers(folder, workers, there):
    before = set(threading.enumerate())
    with loader_of(folder, workers=workers) as loader:
        own = [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("read-")]
        assert len(own) == there
        next(loader.batches(numbers()))


def test_two_hundred_batches_leak_nothing(folder):
    with loader_of(folder) as loader:
        stream = loader.batches(numbers(40))
        for _ in range(100):
            next(stream)
        gc.collect()
        process = psutil.Process()
        memory, descriptors = process.memory_info().rss, process.num_fds()
        for _ in range(200):
            next(stream)
        assert process.num_fds() <= descriptors
        assert process.memory_info().rss - memory < 8 * 2**20


def test_a_process_that_never_closes_its_loader_ends(folder):
    code = f"""
from pathlib import Path
from hires_gan.data.loader import Loader, Request
from hires_gan.data.settings import DataSettings
from hires_gan.data.shards import ShardSet
data = DataSettings(shards="{folder}", decoder="dali-cpu")
loader = Loader(ShardSet(Path("{folder}")), data, 0, 10**6)
print(next(loader.batches(Request(range(k, k + 9), 16) for k in range(99))).images.shape)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "torch.Size([9, 3, 16, 16])\n"), done.stderr


HANGS = """
import sys, time
from pathlib import Path
from hires_gan.data.loader import Loader, Request
from hires_gan.data.settings import DataSettings
from hires_gan.data.shards import ShardSet
from hires_gan.data.stream_reader import StreamReader
from hires_gan.data.waiting import Stopped
StreamReader.fetch = lambda *_, **__: time.sleep(600)
data = DataSettings(shards=sys.argv[1], decoder="dali-cpu", timeout=600 if sys.argv[2] == "Stopped" else 1)
stops = [False, False, True]
stopped = lambda: sys.argv[2] == "Stopped" and stops.pop(0)
with Loader(ShardSet(Path(sys.argv[1])), data, 0, 10**6, stopped=stopped) as loader:
    try:
        next(loader.batches(iter([Request(range(9), 16)])))
    except Exception as error:
        print(type(error).__name__)
        sys.exit(7)
"""


@pytest.mark.parametrize("how", ["Failure", "Stopped"])
def test_a_read_that_never_comes_back_keeps_no_process_from_ending(folder, how):
    command = [sys.executable, "-c", HANGS, str(folder), how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout) == (7, how + "\n"), done.stderr


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_fault_of_dali_that_does_not_repeat_changes_nothing(folder, monkeypatch):
    definition, take, faults = Definition(NOISE, LABELS, SEED, True), DaliPipeline.take, iter([False] * 5 + [True])

    def sometimes(self, stream):
        if next(faults, False):
            raise RuntimeError("Critical error in pipeline:\nsomething passing")
        return take(self, stream)

    monkeypatch.setattr(DaliPipeline, "take", sometimes)
    with loader_of(folder) as loader:
        for request, batch in zip(range(8), loader.batches(numbers()), strict=False):
            assert np.array_equal(batch.images.numpy(), definition.images(range(6 * request, 6 * request + 6), SIDE))
        assert len(loader.corrupt) == 0
    assert next(faults, None) is None


def test_a_fault_of_a_reader_is_not_taken_for_one_of_dali(folder, monkeypatch):
    def broken(*_, **__):
        raise ValueError("the reader's own words")

    monkeypatch.setattr(StreamReader, "fetch", broken)
    with loader_of(folder, timeout=20) as loader, pytest.raises(ValueError, match="the reader's own words"):
        next(loader.batches(numbers()))


def test_what_dali_alone_cannot_decode_is_a_sentence(folder, monkeypatch):
    def never(self, files, flips):
        raise RuntimeError("Critical error in pipeline:\nError in CPU operator\n\nencountered:\n\nno more\n")

    monkeypatch.setattr(DaliPipeline, "feed", never)
    named = r"DALI fails on images that torchvision can decode, around row \d+, in .*: no more; set data\.decoder to"
    with loader_of(folder) as loader:
        for _ in range(2):  # and whoever asks again hears it again
            with pytest.raises(Failure, match=named):
                next(loader.batches(numbers()))


@pytest.mark.parametrize("subsampling", [0, 2])
def test_half_a_jpeg_is_refused_before_dali_sees_it(subsampling):
    """On a GPU there may be no error."""
    whole = file(scene(), quality=90, subsampling=subsampling)
    for good in (whole, whole + b"\0\0 more", png_of(Image.fromarray(scene()))):
        same_everywhere(good)
    for length in (len(whole) // 2, len(whole) - 40, 200):
        with pytest.raises(Undecodable):
            same_everywhere(whole[:length])


MEMORY = (
    r"^DALI gets no more memory to decode \({}\): lower data\.prefetch, .* or batch\.per_device, .* or set "
    r"data\.decoder to dali-cpu;"
)
NO_MEMORY = [
    ("CUDA runtime API error cudaErrorMemoryAllocation (2):\nout of memory", "CUDA runtime API error .*"),
    ("Can't allocate 3221225472 bytes on device 0: Out of memory", "Can't allocate .*"),
    ("CUDA driver API error CUDA_ERROR_OUT_OF_MEMORY (2)", "CUDA driver API error .*"),
]


@pytest.mark.parametrize(("said", "line"), NO_MEMORY)
def test_memory_that_dali_does_not_get_is_not_said_to_be_the_images(folder, monkeypatch, said, line):
    calls = []

    def never(self, files, flips):
        calls.append(files)
        raise RuntimeError(f"Critical error in pipeline:\nError in GPU operator\n\nencountered:\n\n{said}\n")

    monkeypatch.setattr(DaliPipeline, "feed", never)
    with loader_of(folder) as loader, pytest.raises(Failure, match=MEMORY.format(line)) as caught:
        next(loader.batches(numbers()))
    assert "torchvision" not in str(caught.value)
    assert len(calls) == 2  # a passing lack of memory is no end


@pytest.mark.parametrize(("said", "line"), NO_MEMORY)
def test_memory_that_a_pipeline_does_not_get_at_its_beginning(folder, monkeypatch, said, line):
    def no(*_):
        raise RuntimeError(said)

    monkeypatch.setattr(DaliPipeline, "_build", no)
    with loader_of(folder) as loader, pytest.raises(Failure, match=MEMORY.format(line)) as caught:
        next(loader.batches(numbers()))
    assert "torchvision" not in str(caught.value)


@pytest.fixture
def asked(monkeypatch) -> dict[str, Any]:
    """What DALI's decoder was asked for."""
    from nvidia.dali import fn

    found, real = {}, fn.decoders.image

    def image(*inputs: Any, **arguments: Any) -> Any:
        found.update(arguments)
        return real(*inputs, **arguments)

    monkeypatch.setattr(fn.decoders, "image", image)
    return found


@pytest.mark.skipif(torch.cuda.is_available() or Path("/dev/nvidiactl").exists(), reason="there is a GPU")
@pytest.mark.parametrize("load", [0.0, 0.3, 1.0])
def test_what_a_gpu_s_decoder_is_asked_for_and_that_it_cannot_decode_here(folder, asked, monkeypatch, load):
    """The setting's way to DALI, up to where it needs a GPU."""
    monkeypatch.setattr(dali, "check_installed", lambda gpu: "2.4.0")
    monkeypatch.setattr(dali, "OnGpu", lambda gpu, domains: OnHost(4, 60 * SIDE * SIDE * 3, domains))
    data = DataSettings(shards=str(folder), decoder="dali", threads=1, prefetch=3, hw_decoder_load=load)
    named = (
        r"DALI cannot decode on cuda:0: .+; see `hires-gan doctor`, or set data\.decoder to dali-cpu or torchvision$"
    )
    loader = Loader(ShardSet(folder), data, SEED, 60 * SIDE * SIDE * 3, device=torch.device("cuda", 0))
    with loader, pytest.raises(Failure, match=named):
        next(loader.batches(numbers()))
    assert (asked["device"], asked["hw_decoder_load"], asked["jpeg_fancy_upsampling"]) == ("mixed", load, True)


def test_on_the_cpu_it_is_asked_for_nothing_of_a_gpu(folder, asked):
    with loader_of(folder, hw_decoder_load=0.3) as loader:
        next(loader.batches(numbers()))
    assert asked["device"] == "cpu"
    assert "hw_decoder_load" not in asked


def test_a_pipeline_that_cannot_begin_is_a_sentence(folder, monkeypatch):
    def no(*_):
        raise RuntimeError("nothing works here")

    monkeypatch.setattr(DaliPipeline, "_build", no)
    named = "DALI cannot decode on the CPU: nothing works here; set data.decoder to torchvision"
    with loader_of(folder) as loader, pytest.raises(Failure, match=named):
        next(loader.batches(numbers()))


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("", "RuntimeError"),
        ("just this\nand that", "just this"),
        (
            "Critical error in pipeline:\nError in X\nencountered:\n\nnvImageCodec failure\nCurrent pipe",
            "nvImageCodec f",
        ),
    ],
)
def test_what_dali_says_in_a_line(said, line):
    assert first_line(RuntimeError(said)).startswith(line)


def settings_of(folder: Path, decoder: str) -> DataSettings:
    return DataSettings(shards=str(folder), decoder=decoder)


@pytest.mark.parametrize("decoder", ["dali", "dali-cpu"])
def test_without_dali_it_is_said_what_to_install_or_to_change(folder, decoder, monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    named = r"asks for NVIDIA DALI, which is not installed: pip install 'hires-gan\[dali\]', or set data\.decoder to t"
    with pytest.raises(UsageError, match=named):
        check_decoder(settings_of(folder, decoder), ShardSet(folder), torch.device("cuda"))
    with pytest.raises(UsageError, match=named):
        loader_of(folder)
    check_decoder(settings_of(folder, "torchvision"), ShardSet(folder), CPU)


def test_without_a_gpu_what_decodes_on_one_is_refused(folder):
    named = r"data\.decoder is dali, .* but this run trains on the CPU: set data\.decoder to dali-cpu, or to torchv"
    with pytest.raises(UsageError, match=named):
        check_decoder(settings_of(folder, "dali"), ShardSet(folder), CPU)
    with pytest.raises(UsageError, match=named):
        loader_of(folder, decoder="dali")
    check_decoder(settings_of(folder, "dali-cpu"), ShardSet(folder), CPU)


def test_a_dali_that_does_not_load_is_not_called_absent(monkeypatch):
    def broken(name):
        raise ImportError("libnvimgcodec.so.0: cannot open shared object file")

    monkeypatch.setattr(dali_pipeline, "import_module", broken)
    with pytest.raises(Failure, match=r"cannot be loaded \(libnvimgcodec.*\): install it again with pip install --f"):
        check_installed(None)


def test_a_driver_that_is_too_old_is_named(monkeypatch):
    for driver in (13000, 13010, 14000):
        check_driver("2.4.0", 13, driver)
    named = (
        r"DALI 2\.4\.0 is built for CUDA 13, but this machine's NVIDIA driver is for CUDA up to 12\.6: update the "
        r"driver, install nvidia-dali-cuda120 in place of nvidia-dali-cuda130, or set data\.decoder to dali-cpu or t"
    )
    with pytest.raises(Failure, match=named):
        check_driver("2.4.0", 13, 12060)
    monkeypatch.setattr(dali_pipeline, "_cuda_of_driver", lambda: 11080)
    with pytest.raises(Failure, match=r"is built for CUDA 1\d, but this machine's NVIDIA driver is for CUDA up to 11"):
        check_installed(torch.device("cuda"))
    check_installed(None)


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a driver")
def test_a_gpu_that_is_not_there_is_named(folder):
    with pytest.raises(
        Failure, match=r"DALI needs NVIDIA's driver, which does not answer \(.*\): set data\.decoder to"
    ):
        check_decoder(settings_of(folder, "dali"), ShardSet(folder), torch.device("cuda"))


def test_dali_is_imported_when_it_is_used():
    code = """
import sys
import hires_gan.data.loader, hires_gan.config, hires_gan.training.run, hires_gan.doctor
assert not [name for name in sys.modules if name.startswith("nvidia.dali")]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("key", "value"), [("decoder", "dali-gpu"), ("threads", 0), ("hw_decoder_load", 1.1), ("timeout", 0)]
)
def test_settings_that_cannot_be(key, value):
    with pytest.raises(ValueError, match=key):
        DataSettings(**{"shards": "x", key: value})
