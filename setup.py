"""Builds the compiled ops, ahead of time; what else the package is stands in pyproject.toml.

HIRES_GAN_BUILD=cuda|cpu|none says what is built, and is obeyed or the build fails. Without it, everything that can be
built here is: the package installs on any machine, and hires_gan/ops/build.json says what came of it, and why.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
DEVICES = {"cpu": "*.cpp", "cuda": "*.cu"}
CHOICES = ("cuda", "cpu", "none")
NO_TORCH = "torch could not be imported while it was built ({}); pip's build isolation hides the installed one"


def by_path(name: str) -> ModuleType:
    """A module of the package without the package: importing hires_gan.ops would need torch, and the ops."""
    specification = importlib.util.spec_from_file_location(Path(name).stem, ROOT / name)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses look up the module of their annotations
    specification.loader.exec_module(module)
    return module


toolkit = by_path("hires_gan/toolkit.py")
build_record = by_path("hires_gan/ops/build_record.py")


class BuildOps(build_ext):
    """Builds each library by itself, with torch's BuildExtension: if one fails, the others are built all the same."""

    def run(self) -> None:
        """Build, remove what an earlier build left and this one has not made anew, and leave the record."""
        asked = os.environ.get("HIRES_GAN_BUILD", "")
        folder = (ROOT if self.inplace else Path(self.build_lib)) / "hires_gan" / "ops"
        folder.mkdir(parents=True, exist_ok=True)
        self.record = build_record.BuildRecord(asked=asked, sources=build_record.fingerprint(ROOT / "csrc"))
        super().run()
        for library in folder.glob("native_*.so"):
            if library.name not in {Path(self.get_ext_filename(made.name)).name for made in self.extensions}:
                library.unlink()
        build_record.write(folder, self.record)
        self._report(folder)

    def build_extensions(self) -> None:
        """Build what was asked for and can be; afterwards `extensions` holds what was built."""
        outcome = self._plan()
        built = []
        for extension in self.extensions:
            device = extension.name.rpartition("_")[2]
            if device not in outcome:
                outcome[device] = self._build(extension, device)
                built += [extension] if outcome[device].built else []
        self.extensions = built
        self.record = dataclasses.replace(self.record, libraries=outcome)

    def _plan(self) -> dict[str, Any]:
        """The libraries that are not even tried, with the reason; what is known about torch goes into the record."""
        if self.record.asked == "none":
            return dict.fromkeys(DEVICES, build_record.Library(why="HIRES_GAN_BUILD was none"))
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it looks for a GPU, and tells
        try:
            import torch
            from torch.utils import cpp_extension
        except Exception as error:  # one that is installed, but broken, must not keep the package from installing
            return dict.fromkeys(DEVICES, build_record.Library(why=NO_TORCH.format(error or type(error).__name__)))
        # ninja lies beside the interpreter, in an environment that need not be activated.
        os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), sysconfig.get_path("scripts")])
        cuda = torch.version.cuda or ""
        self._note(torch=str(torch.__version__), torch_cuda=cuda)
        version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
        if version < build_record.TARGET:
            why = f"torch is {torch.__version__}, and torch {self.record.target} or newer is needed"
            return dict.fromkeys(DEVICES, build_record.Library(why=why))
        compiler = cpp_extension.get_cxx_compiler()
        if shutil.which(shlex.split(compiler)[0]) is None:
            why = f"there is no C++ compiler: {compiler} is not on the PATH"
            return dict.fromkeys(DEVICES, build_record.Library(why=why))
        self._note(compiler=first_line([*shlex.split(compiler), "--version"]))
        why_not = self._plan_cuda(cpp_extension, cuda)
        return {"cuda": build_record.Library(why=why_not)} if why_not else {}

    def _plan_cuda(self, cpp_extension: Any, cuda: str) -> str:
        """Why the CUDA library is not tried; empty if it is: then torch knows the toolkit and the architectures."""
        if self.record.asked == "cpu":
            return "HIRES_GAN_BUILD was cpu"
        if not cuda:
            return "torch is built without CUDA"
        found = toolkit.find_toolkit()
        if found.root is None:
            return f"there is no CUDA toolkit: {found.how}"
        known = toolkit.known_architectures(found.root)
        kept, left_out = toolkit.choose_architectures(os.environ.get("TORCH_CUDA_ARCH_LIST"), known)
        nvcc = toolkit.nvcc_version(found.root)
        self._note(toolkit=str(found.root), nvcc=nvcc, architectures=tuple(kept), left_out=tuple(left_out))
        if not kept:
            return f"nvcc {nvcc} compiles for none of the architectures in TORCH_CUDA_ARCH_LIST, {', '.join(left_out)}"
        cpp_extension.CUDA_HOME = str(found.root)
        os.environ["TORCH_CUDA_ARCH_LIST"] = ";".join(kept)
        return ""

    def _note(self, **facts: Any) -> None:
        self.record = dataclasses.replace(self.record, **facts)

    def _build(self, extension: Extension, device: str) -> Any:
        """Build one library; whatever goes wrong is in what is returned."""
        if not extension.sources:
            return build_record.Library(why=f"there are no sources: csrc has no {DEVICES[device]}")
        log = Path(tempfile.mkstemp(prefix="hires_gan_build_")[1])
        try:
            with printed_into(log):
                self._compile(extension, device)
        except (Exception, SystemExit) as error:
            output = log.read_text(encoding="utf-8", errors="replace")
            sys.stderr.write(output)
            return build_record.failure("it did not compile", f"{output}\n{error}")
        finally:
            log.unlink()
        return build_record.Library(built=True)

    def _compile(self, extension: Extension, device: str) -> None:
        """Run torch's BuildExtension over one library, in a folder of its own."""
        from torch.utils.cpp_extension import BuildExtension

        specialise(extension, device, self.record)
        command = BuildExtension(self.distribution)
        command.build_lib, command.build_temp = self.build_lib, str(Path(self.build_temp, device))
        command.debug, command.parallel, command.inplace = self.debug, self.parallel, False
        command.ensure_finalized()
        extension.depends = [str(file) for file in sorted((ROOT / "csrc").iterdir())]  # where ninja is not there to see
        command.extensions = [extension]
        command.run()

    def _report(self, folder: Path) -> None:
        """Say what was built; fail if that is not what was asked for."""
        for device, library in self.record.libraries.items():
            said = "built" if library.built else f"not built: {library.why}"
            sys.stderr.write(f"hires_gan: compiled ops for {device}: {said}\n")
            if library.error:
                sys.stderr.write(f"hires_gan:   {library.error}\nhires_gan:   more in {folder / build_record.FILE}\n")
        if self.record.left_out:
            sys.stderr.write(f"hires_gan: nvcc {self.record.nvcc} does not know {', '.join(self.record.left_out)}\n")
        missing = [
            f"the library for {device} was not built: {self.record.libraries[device].error or library.why}"
            for device, library in self.record.libraries.items()
            if not library.built and device in {"cuda": ("cpu", "cuda"), "cpu": ("cpu",)}.get(self.record.asked, ())
        ]
        if missing:
            remedy = "unset it to install with what can be built here"
            raise SystemExit(f"HIRES_GAN_BUILD is {self.record.asked}, but {'; '.join(missing)}; {remedy}")


def specialise(extension: Extension, device: str, record: Any) -> None:
    """Give an extension the headers, flags and libraries that torch and the toolkit need.

    Only libtorch's stable C interface is linked: one library serves every later torch, and every Python.
    """
    from torch.utils.cpp_extension import CppExtension, CUDAExtension

    major, minor = build_record.TARGET
    target = f"-DTORCH_TARGET_VERSION=0x{major:02x}{minor:02x}000000000000"
    cxx = ["-O1", "-g0", "-fvisibility=hidden", "-fvisibility-inlines-hidden", target, "-DTORCH_STABLE_ONLY"]
    link, libraries = ["-Wl,--exclude-libs,ALL", "-Wl,--as-needed"], ["torch_cpu"]
    if device == "cuda":
        root = Path(record.toolkit)
        # -O is for the host's half, which only launches; the device's half is always optimised in full.
        threads = f"--threads={min(len(record.architectures) + 1, os.cpu_count() or 1)}"
        host = [part for flag in cxx[2:4] for part in ("-Xcompiler", flag)]
        nvcc = ["-O1", *host, threads, target, "-DTORCH_STABLE_ONLY", "-DUSE_CUDA"]
        made = CUDAExtension(extension.name, extension.sources, py_limited_api=True)
        made.include_dirs += [str(folder) for folder in toolkit.header_folders(root)]
        made.library_dirs += [str(folder) for folder in toolkit.library_folders(root)]
        # The runtime is linked in: no libcudart has to be found, or to fit, where the library is loaded.
        libraries += ["torch_cuda", "cudart_static", "rt", "dl", "pthread"]
        extension.extra_compile_args = {"cxx": [*cxx, "-DUSE_CUDA"], "nvcc": nvcc}
    else:
        made = CppExtension(extension.name, extension.sources, py_limited_api=True)
        extension.extra_compile_args = {"cxx": cxx}
    extension.include_dirs, extension.library_dirs = made.include_dirs, made.library_dirs
    extension.libraries, extension.extra_link_args, extension.language = libraries, link, made.language


def first_line(command: list[str]) -> str:
    """What a program says first; empty if it does not run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return ""
    return next(iter(done.stdout.splitlines()), "").strip()


@contextlib.contextmanager
def printed_into(log: Path) -> Iterator[None]:
    """Have everything that this process and its compilers print go into a file, so that an error can be kept."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [(number, os.dup(number)) for number in (1, 2)]
    try:
        with log.open("ab") as file:
            for number, _ in kept:
                os.dup2(file.fileno(), number)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in kept:
            os.dup2(copy, number)
            os.close(copy)


def extensions() -> list[Extension]:
    """The two libraries; their flags are added when they are built, since asking torch for them takes seconds."""
    sources = {device: sorted(path.name for path in (ROOT / "csrc").glob(DEVICES[device])) for device in DEVICES}
    return [
        Extension(f"hires_gan.ops.native_{device}", [f"csrc/{name}" for name in names], py_limited_api=True)
        for device, names in sources.items()
    ]


def main() -> None:
    """Check what was asked for, then hand over to setuptools."""
    asked = os.environ.get("HIRES_GAN_BUILD", "")
    if asked and asked not in CHOICES:
        sys.exit(f"HIRES_GAN_BUILD is {asked!r}: set it to cuda, cpu or none, or unset it to build what can be built")
    setup(
        ext_modules=extensions(),
        cmdclass={"build_ext": BuildOps},
        options={"bdist_wheel": {"py_limited_api": "cp311"}},
    )


if __name__ == "__main__":
    main()
