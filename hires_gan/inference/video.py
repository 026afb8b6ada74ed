"""Frames to a film: an mp4 file through ffmpeg where it is on PATH, else a folder of PNG files. No frame is kept."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from hires_gan.errors import Failure
from hires_gan.inference.files import cannot_write, make_folder
from hires_gan.inference.images import Pixels, save_png
from hires_gan.progress import say

_COLOURS = (
    "scale=out_color_matrix=bt709:out_range=tv,"
    "setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709:range=tv"
)
"""Players take what is large for BT.709; ffmpeg's own choice would be BT.601, and shift the colours."""


def open_film(folder: Path, name: str, fps: int) -> Mp4 | FrameFolder:
    """What takes frames, as a context manager; says so if there is no ffmpeg.

    Args:
        folder: Where the film shall be; made with the first frame.
        name: Its name, without an ending.
        fps: Frames in a second.
    """
    program = shutil.which("ffmpeg")
    if program is not None:
        return Mp4(program, folder / f"{name}.mp4", fps)
    say(f"there is no ffmpeg on PATH: the frames become PNG files in {folder / name}, for {fps} frames in a second")
    return FrameFolder(folder / name)


class FrameFolder:
    """Frames as PNG files: `frame000000.png`, `frame000001.png`, ...

    Args:
        path: The folder; frames of an earlier film in it are replaced, and deleted behind the last.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._count = 0

    def add(self, pixels: Pixels) -> None:
        """Write one frame: uint8 `[h, w, 3]`.

        Raises:
            Failure: If it cannot be written.
        """
        save_png(self.path / f"frame{self._count:06d}.png", pixels)
        self._count += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if kind is not None:
            return
        names = [path for path in self.path.glob("frame*.png") if re.fullmatch(r"frame\d{6,}\.png", path.name)]
        stale = [path for path in names if int(path.stem.removeprefix("frame")) >= self._count]
        for path in stale:
            path.unlink(missing_ok=True)
        if stale:
            say(f"{len(stale)} frames of an earlier, longer film in {self.path} are deleted")


class Mp4:
    """An mp4 file (H.264, 4:2:0), which appears when it is whole.

    Args:
        program: ffmpeg's path.
        path: The file.
        fps: Frames in a second.
    """

    def __init__(self, program: str, path: Path, fps: int) -> None:
        self.path = path
        self._partial = path.with_name(f".{path.name}.partial")
        self._program, self._fps = program, fps
        self._process: subprocess.Popen[bytes] | None = None
        # A file, and not a pipe, which nobody would empty meanwhile.
        self._complaints: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__

    def add(self, pixels: Pixels) -> None:
        """Encode one frame: uint8 `[h, w, 3]`, with sides that are even, all of one size.

        Raises:
            Failure: If ffmpeg cannot be started, or has ended.
        """
        if self._process is None:
            self._process = self._start(*pixels.shape[:2])
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(pixels.tobytes())
        except OSError:  # it has ended, and told why
            raise self._failed(self._process) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if self._process is not None:
                self._end(self._process, whole=kind is None)
        finally:
            self._complaints.close()
            self._partial.unlink(missing_ok=True)

    def _start(self, height: int, width: int) -> subprocess.Popen[bytes]:
        make_folder(self.path.parent)
        source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-video_size", f"{width}x{height}"]
        source += ["-framerate", str(self._fps), "-i", "pipe:0"]
        codec = ["-an", "-vf", _COLOURS, "-c:v", "libx264", "-crf", "17", "-pix_fmt", "yuv420p"]
        target = ["-movflags", "+faststart", "-f", "mp4", f"file:{self._partial}"]
        command = [self._program, "-nostdin", "-y", "-loglevel", "error", *source, *codec, *target]
        try:
            return subprocess.Popen(  # noqa: S603
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=self._complaints
            )
        except OSError as error:
            reason = error.strerror or error
            raise Failure(f"cannot start {self._program}: {reason}; mend it, or take it off PATH") from error

    def _end(self, process: subprocess.Popen[bytes], whole: bool) -> None:
        if not whole:
            process.kill()
        process.communicate()  # closes its input, and waits
        if not whole:
            return
        if process.returncode != 0:
            raise self._failed(process)
        try:
            self._partial.rename(self.path)
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def _failed(self, process: subprocess.Popen[bytes]) -> Failure:
        code = process.wait()
        self._complaints.seek(0)
        lines = self._complaints.read().decode(errors="replace").strip().splitlines()
        return Failure(
            f"{self._program} could not write {self.path} (it ended with {code}): {lines[-1] if lines else 'no reason'}"
            "; make room, install one with libx264, or take it off PATH, and the frames become PNG files"
        )
