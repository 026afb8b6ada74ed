"""All that touches `nvidia.dali`: whether it can be used here, its pipeline, and where what it decodes is put."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack
from torchvision.io import encode_jpeg

from hires_gan.data.decoders import halve
from hires_gan.data.ring import Ring
from hires_gan.errors import Failure, UsageError

DEPTH = 2
"""How many batches are in the pipeline at once: one is decoded while the next one is handed over."""
PIPELINE_ERRORS = (RuntimeError, ValueError, IndexError)
"""What DALI raises; behind any of them the pipeline cannot be used any more."""
_ELSEWHERE = "set data.decoder to dali-cpu or torchvision"
_FILES, _FLIPS = "files", "flips"
_NO_MEMORY = re.compile(r"out of memory|CUDA_ERROR_OUT_OF_MEMORY|cudaErrorMemoryAllocation", re.IGNORECASE)


class WrongSidesError(ValueError):
    """DALI decoded an image to other sides than those that it must have."""


def check_installed(gpu: torch.device | None) -> str:
    """Make sure that DALI can be loaded, and used on a GPU if it is to decode there.

    Args:
        gpu: The GPU, or None for the CPU.

    Returns:
        DALI's version.

    Raises:
        UsageError: If DALI is not installed.
        Failure: If it cannot be loaded, or the GPU's driver is too old for it.
    """
    try:
        dali = import_module("nvidia.dali")
        built = cuda_of(dali)
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("nvidia"):
            raise _broken(error) from error
        raise UsageError(
            "data.decoder asks for NVIDIA DALI, which is not installed: pip install 'hires-gan[dali]', or set "
            "data.decoder to torchvision"
        ) from None
    except (ImportError, OSError) as error:
        raise _broken(error) from error
    version = str(dali.__version__)
    if gpu is not None:
        check_driver(version, built, _cuda_of_driver())
    return version


def check_driver(version: str, built: int, driver: int) -> None:
    """Make sure that the GPU's driver is new enough: any one of the same CUDA major version is.

    Args:
        version: DALI's.
        built: The CUDA major version that DALI is built for.
        driver: The newest CUDA version that the driver supports.

    Raises:
        Failure: If it is not.
    """
    if driver // 1000 < built:
        raise Failure(
            f"DALI {version} is built for CUDA {built}, but this machine's NVIDIA driver is for CUDA up to "
            f"{driver // 1000}.{driver % 1000 // 10}: update the driver, install nvidia-dali-cuda{driver // 1000}0 in "
            f"place of nvidia-dali-cuda{built}0, or {_ELSEWHERE}"
        )


def cuda_of(dali: Any) -> int:
    """The CUDA major version that a loaded `nvidia.dali` is built for; 13492 stands for 13."""
    return int(dali.__cuda_version__) // 1000


class DaliPipeline:
    """Batches of files in, batches of RGB images out, in the same order, up to `DEPTH` of them at once.

    Args:
        gpu: Where it decodes; None for the CPU.
        batch: The most files that it is handed at once.
        threads: DALI's threads on the CPU.
        mirror: Whether images can be flipped.
        hw_decoder_load: The share that a GPU's JPEG decoder takes.

    Raises:
        Failure: If DALI cannot decode there, or gets no memory for it.
    """

    def __init__(
        self, gpu: torch.device | None, batch: int, threads: int, mirror: bool, hw_decoder_load: float
    ) -> None:
        self._mirror = mirror
        try:
            self._pipeline = self._build(gpu, batch, threads, hw_decoder_load)
            # The first run of a pipeline takes `DEPTH` batches at once: here, so that from now on one goes in and one
            # comes out, and so that what cannot work is known at the start.
            grey = encode_jpeg(torch.full((3, 16, 16), 128, dtype=torch.uint8)).numpy().tobytes()
            for _ in range(DEPTH):
                self._give([grey], [False])
            self._pipeline.schedule_run()
            for _ in range(DEPTH):
                self.take(None)
        except PIPELINE_ERRORS as error:
            where = "the CPU" if gpu is None else f"{gpu}"
            raise no_memory(error) or Failure(
                f"DALI cannot decode on {where}: {first_line(error)}; "
                + ("set data.decoder to torchvision" if gpu is None else f"see `hires-gan doctor`, or {_ELSEWHERE}")
            ) from error

    def feed(self, files: Sequence[bytes], flips: Sequence[bool]) -> None:
        """Hand over a batch; the caller takes one out first if `DEPTH` are in it.

        Args:
            files: Whole JPEG or PNG files.
            flips: Which of them to flip from left to right.
        """
        self._give(files, flips)
        self._pipeline.schedule_run()

    def take(self, stream: torch.cuda.Stream | None) -> Any:
        """Wait for the oldest batch: DALI's list of uint8 `[h, w, 3]`, good until the next one is asked for.

        Args:
            stream: On which a GPU's images may be used, when the decoding that is launched by now is done.
        """
        self._pipeline.release_outputs()
        (images,) = self._pipeline.share_outputs(cuda_stream=stream)
        return images

    def _give(self, files: Sequence[bytes], flips: Sequence[bool]) -> None:
        self._pipeline.feed_input(_FILES, [np.frombuffer(data, np.uint8) for data in files])
        if self._mirror:
            self._pipeline.feed_input(_FLIPS, np.array(flips, np.int32))

    def _build(self, gpu: torch.device | None, batch: int, threads: int, hw_decoder_load: float) -> Any:
        from nvidia.dali import Pipeline, fn, types

        # Upsampled as on the CPU, and without pinning threads to cores, which several processes would do to the same.
        mixed: dict[str, Any] = {"hw_decoder_load": hw_decoder_load, "jpeg_fancy_upsampling": True, "affine": False}
        pipeline = Pipeline(
            batch_size=batch,
            num_threads=threads,
            device_id=None if gpu is None else _index(gpu),
            prefetch_queue_depth=DEPTH,
            exec_dynamic=True,
        )
        with pipeline:
            images = fn.decoders.image(
                fn.external_source(name=_FILES, device="cpu", dtype=types.UINT8, ndim=1),
                device="cpu" if gpu is None else "mixed",
                output_type=types.RGB,
                adjust_orientation=False,
                **({} if gpu is None else mixed),
            )
            if self._mirror:
                flips = fn.external_source(name=_FLIPS, device="cpu", dtype=types.INT32, ndim=0)
                images = fn.flip(images, horizontal=flips)
            pipeline.set_outputs(images)
        pipeline.build()
        return pipeline


class Place(Protocol):
    """Where batches are put together."""

    def batch(self, turn: int, samples: int, resolution: int) -> Tensor:
        """Memory for batch number `turn`: uint8 `[domains * samples, resolution, resolution, 3]`, domain by domain."""

    def put(self, pipeline: DaliPipeline, side: int, images: Tensor) -> None:
        """Take the oldest images out of a pipeline, halve them to the resolution of their places and write them there.

        Args:
            pipeline: What decodes.
            side: Of the images that it decodes.
            images: Their places, uint8 `[domains, n, r, r, 3]`.

        Raises:
            WrongSidesError: If not all of it has the sides that it must have.
        """

    def done(self) -> torch.cuda.Event | None:
        """What to wait for until all that was put is there; None if it is."""

    def hand_over(self, images: Tensor, done: torch.cuda.Event | None) -> None:
        """Let the caller's stream use a batch once it is done."""


class OnHost:
    """Batches in a ring of the host's memory.

    Args:
        slots: How many of them there are.
        largest: Bytes of the largest one in one domain.
        domains: How many domains there are.
    """

    def __init__(self, slots: int, largest: int, domains: int = 1) -> None:
        self._ring = Ring(slots, largest, domains)

    def batch(self, turn: int, samples: int, resolution: int) -> Tensor:
        """A slot of the ring."""
        return self._ring.images(turn % self._ring.slots, samples, resolution)

    def put(self, pipeline: DaliPipeline, side: int, images: Tensor) -> None:
        """Image by image, so that what is halved stays in the processor's cache."""
        decoded = pipeline.take(None)
        _check_sides(decoded, side)
        for number, out in enumerate(place for domain in images for place in domain):
            image = from_dlpack(decoded[number])
            while image.shape[0] > out.shape[0]:
                image = halve(image)
            out.copy_(image)

    def done(self) -> None:
        """It is there."""

    def hand_over(self, images: Tensor, done: torch.cuda.Event | None) -> None:
        """It may be used at once."""


class OnGpu:
    """Batches in a GPU's memory, put together on a stream of their own.

    Args:
        device: The GPU.
        domains: How many domains there are.
    """

    def __init__(self, device: torch.device, domains: int = 1) -> None:
        self._device, self._domains = device, domains
        self._stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def batch(self, turn: int, samples: int, resolution: int) -> Tensor:
        """New memory, from the stream's own pool."""
        count = self._domains * samples
        with torch.cuda.stream(self._stream):
            return torch.empty(count, resolution, resolution, 3, dtype=torch.uint8, device=self._device)

    def put(self, pipeline: DaliPipeline, side: int, images: Tensor) -> None:
        """All at once, in the order of the stream: nothing here waits for the GPU."""
        from nvidia.dali.plugin.pytorch import feed_ndarray

        decoded = pipeline.take(self._stream)
        _check_sides(decoded, side)
        with torch.cuda.stream(self._stream):
            whole = images
            if side != images.shape[2] or not images.is_contiguous():
                whole = torch.empty(*images.shape[:2], side, side, 3, dtype=torch.uint8, device=self._device)
            feed_ndarray(decoded.as_tensor(), whole.flatten(0, 1), cuda_stream=self._stream)
            if whole is not images:
                while whole.shape[2] > images.shape[2]:
                    whole = halve(whole)
                images.copy_(whole)

    def done(self) -> torch.cuda.Event:
        """An event behind all that was put."""
        event: torch.cuda.Event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return event

    def hand_over(self, images: Tensor, done: torch.cuda.Event | None) -> None:
        """Let the current stream wait for the batch, and the allocator for the current stream."""
        current = torch.cuda.current_stream(self._device)
        if done is not None:
            current.wait_event(done)
        images.record_stream(current)


def first_line(error: BaseException) -> str:
    """What DALI says was wrong: the line behind its traceback of the pipeline's definition, or its first one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    known = ("Critical error in pipeline", "Current pipeline object is no longer valid")
    lines = [line for line in lines if not line.startswith(known)]
    if "encountered:" in lines[:-1]:
        return lines[lines.index("encountered:") + 1]
    return lines[0] if lines else type(error).__name__


def no_memory(error: BaseException) -> Failure | None:
    """What to do if DALI's error is that it got no memory; None if it is another one."""
    line = next((line.strip() for line in str(error).splitlines() if _NO_MEMORY.search(line)), None)
    if line is None:
        return None
    return Failure(
        f"DALI gets no more memory to decode ({line}): lower data.prefetch, which holds so many batches in it, or "
        "batch.per_device, which leaves it more of a GPU's; or set data.decoder to dali-cpu; none of them changes what "
        "is trained"
    )


def _check_sides(decoded: Any, side: int) -> None:
    found = next((shape for shape in decoded.shape() if tuple(shape) != (side, side, 3)), None)
    if found is not None:
        raise WrongSidesError(f"DALI decoded an image to {tuple(found)} where {(side, side, 3)} must stand")


def _index(gpu: torch.device) -> int:
    return torch.cuda.current_device() if gpu.index is None else gpu.index


def _cuda_of_driver() -> int:
    """The newest CUDA version that the driver supports, 13000 for 13.0."""
    import pynvml

    try:
        pynvml.nvmlInit()
        version: int = pynvml.nvmlSystemGetCudaDriverVersion_v2()
        pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        raise Failure(f"DALI needs NVIDIA's driver, which does not answer ({error}): {_ELSEWHERE}") from error
    return version


def _broken(error: BaseException) -> Failure:
    return Failure(
        f"DALI is installed but cannot be loaded ({first_line(error)}): install it again with "
        "pip install --force-reinstall 'hires-gan[dali]', or set data.decoder to torchvision"
    )
