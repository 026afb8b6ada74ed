"""The build of the ops: which toolkit, what is built where, what is left when a compiler fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from hires_gan.ops import build_record, native, self_test
from hires_gan.ops.build_record import BuildRecord, Library
from hires_gan.toolkit import choose_architectures, find_toolkit, header_folders

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCE = 'extern "C" int hires_gan_stand_in() { return 1; }\n'


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty machine: its bin folder is the whole PATH, its usual folder has no toolkit."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "usual").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    return tmp_path


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def make_toolkit(root: Path, headers: str = "include") -> Path:
    """A toolkit whose nvcc says where it is, as the real one does."""
    (root / headers).mkdir(parents=True)
    (root / headers / "cuda_runtime.h").touch()
    program(root / "bin/nvcc", f"echo '#$ _HERE_={root}/bin' >&2; echo '#$ TOP={root}/bin/..' >&2")
    return root


def test_the_toolkit_that_is_named(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other, named = make_toolkit(machine / "usual/cuda"), make_toolkit(machine / "named")
    assert find_toolkit(machine / "usual").root == other
    monkeypatch.setenv("CUDA_HOME", str(named))
    assert find_toolkit(machine / "usual") == (named, "CUDA_HOME")


def test_a_name_that_leads_nowhere_is_not_passed_over(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_toolkit(machine / "usual/cuda")
    monkeypatch.setenv("CUDA_HOME", str(machine))
    how = f"CUDA_HOME is {machine}, where there is no include/cuda_runtime.h"
    assert find_toolkit(machine / "usual") == (None, how)
    (make_toolkit(machine / "half") / "bin/nvcc").unlink()
    monkeypatch.setenv("CUDA_HOME", str(machine / "half"))
    assert find_toolkit().how == f"CUDA_HOME is {machine}/half, where there is no bin/nvcc"


def test_the_toolkit_above_a_linked_nvcc(machine: Path) -> None:
    root = make_toolkit(machine / "toolkit", "targets/x86_64-linux/include")
    (machine / "bin/nvcc").symlink_to(root / "bin/nvcc")
    assert find_toolkit(machine / "usual") == (root, "the nvcc on the PATH")
    assert header_folders(root) == [root / "targets/x86_64-linux/include"]


@pytest.mark.parametrize("line", ["TOP={}/bin/..", "_HERE_={}/bin"])
def test_the_toolkit_behind_a_wrapper(machine: Path, line: str) -> None:
    root = make_toolkit(machine / "toolkit")
    program(root / "bin/nvcc", f"echo '#$ {line.format(root)}' >&2")
    program(machine / "bin/nvcc", f'exec {root}/bin/nvcc "$@"')
    assert find_toolkit(machine / "usual") == (root, f"what {machine}/bin/nvcc calls its place")


def test_the_newest_toolkit_in_the_usual_place(machine: Path) -> None:
    program(machine / "bin/nvcc", "exit 1")
    for version in ("12.9", "13.0", "9.2"):
        make_toolkit(machine / f"usual/cuda-{version}")
    assert find_toolkit(machine / "usual").root == machine / "usual/cuda-13.0"


def test_no_toolkit(machine: Path) -> None:
    usual = machine / "usual"
    assert find_toolkit(usual) == (
        None,
        f"CUDA_HOME is not set, no nvcc is on the PATH, and {usual} has no cuda",
    )
    program(machine / "bin/nvcc", "exit 1")
    assert f"{machine}/bin/nvcc does not say where its headers are" in find_toolkit(usual).how


@pytest.mark.parametrize(
    ("asked", "known", "kept", "left_out"),
    [
        (None, {"8.0", "9.0", "10.0"}, ["8.0", "9.0", "10.0+PTX"], []),
        ("", {"8.0", "9.0"}, ["8.0", "9.0+PTX"], ["10.0+PTX"]),
        ("7.0 9.0", {"8.0", "9.0"}, ["9.0"], ["7.0"]),
        ("9.0a;Hopper", {"9.0"}, ["9.0a", "Hopper"], []),
        ("5.0;6.0+PTX", {"9.0"}, [], ["5.0", "6.0+PTX"]),
        ("5.0", set(), ["5.0"], []),
    ],
)
def test_architectures(asked: str | None, known: set[str], kept: list[str], left_out: list[str]) -> None:
    assert choose_architectures(asked, known) == (kept, left_out)


def test_the_record_comes_back(tmp_path: Path) -> None:
    assert build_record.read(tmp_path) is None
    failed = build_record.failure("it did not compile", "\n".join(f"line {number}" for number in range(100)))
    record = BuildRecord(torch="2.11.0", architectures=("8.0", "9.0+PTX"), libraries={"cpu": failed})
    build_record.write(tmp_path, record)
    assert build_record.read(tmp_path) == record
    assert len(failed.log) == 60
    for text in ("", "[]", "{}", '{"libraries": 3}', '{"libraries": {"cpu": {"unknown": 1}}}'):
        (tmp_path / build_record.FILE).write_text(text)
        assert build_record.read(tmp_path) is None


@pytest.mark.parametrize(
    ("output", "line"),
    [
        ("[1/2] c++ -Werror: a\nFAILED: error: x\na.cpp:3: error: b\na.cpp:4: error: c", "a.cpp:3: error: b"),
        ("a.h(7): error #20: b\n1 error detected", "a.h(7): error #20: b"),
        ("nvcc fatal   : Unsupported gpu architecture 'compute_70'\nninja: stopped", None),
        ("ld: cannot find -lcudart_static\ncollect2: error: ld returned 1", "ld: cannot find -lcudart_static"),
        ("started\nended badly\n[3/3] c++ x\nninja: build stopped", "ended badly"),
        ("", ""),
    ],
)  # fmt: skip
def test_the_line_that_tells_most(output: str, line: str | None) -> None:
    assert build_record.telling_line(output.splitlines()) == (output.splitlines()[0] if line is None else line)


def test_the_fingerprint_depends_on_names_and_contents(tmp_path: Path) -> None:
    assert build_record.fingerprint(tmp_path) == ""
    seen = set()
    for name, content in (("a.cpp", "1"), ("b.h", ""), ("a.cpp", "2"), ("notes.txt", "3")):
        (tmp_path / name).write_text(content)
        seen.add(build_record.fingerprint(tmp_path))
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("facts", "clause"),
    [
        ({"libraries": {"cuda": Library(why="HIRES_GAN_BUILD was cpu")}}, "it was not built: HIRES_GAN_BUILD was cpu"),
        ({"libraries": {"cuda": Library(built=True)}}, "native_cuda.abi3.so is gone since it was built: run `make"),
        ({"libraries": {}}, "it was not built: the build did not come to it"),
    ],
)  # fmt: skip
def test_why_a_library_is_not_loaded(tmp_path: Path, monkeypatch, facts, clause: str) -> None:
    monkeypatch.setattr(native, "_FOLDER", tmp_path)
    assert native._load("cuda", None).startswith("it was not built: run `make ops`")
    assert native._load("cuda", BuildRecord(**facts)).startswith(clause)


def test_a_library_that_does_not_fit_this_torch(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(native, "_FOLDER", tmp_path)
    (tmp_path / "native_cuda.abi3.so").write_text("no library")
    libraries = {"cuda": Library(built=True)}
    newer = BuildRecord(target="99.1", torch="99.1.0", torch_cuda="13.0", libraries=libraries)
    assert native._load("cuda", newer).startswith("it is built for torch 99.1 or newer, and torch is ")
    built = BuildRecord(torch="2.11.0", torch_cuda="13.0", libraries=libraries)
    monkeypatch.setattr(native.torch.version, "cuda", "12.6")
    assert native._load("cuda", built).startswith("it is built for CUDA 13.0, and torch for CUDA 12.6: run `make")
    monkeypatch.setattr(native.torch.version, "cuda", None)
    assert native._load("cuda", built).startswith("torch is built without CUDA: run `make ops`")
    monkeypatch.setattr(native.torch.version, "cuda", "13.1")
    said = native._load("cuda", built)
    assert "native_cuda.abi3.so" in said, "the loader's own message"
    assert "(it was built against torch 2.11.0, and torch is " in said


# Builds in a copy of the tree


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What the build needs of the repository, with a source that compiles at once."""
    folder = tmp_path / "tree"
    (folder / "csrc").mkdir(parents=True)
    (folder / "csrc/stand_in_cpu.cpp").write_text(SOURCE)
    (folder / "csrc/stand_in_cuda.cu").write_text(SOURCE)
    names = [
        "setup.py",
        "MANIFEST.in",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "constraints.txt",
        "hires_gan/__init__.py",
    ]
    names += ["hires_gan/toolkit.py", "hires_gan/ops/__init__.py", "hires_gan/ops/build_record.py"]  # fmt: skip
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def run_setup(tree: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    unset = ("HIRES_GAN_BUILD", "TORCH_CUDA_ARCH_LIST", "CUDA_HOME", "CXX", "CC", "PYTHONPATH")
    kept = {key: value for key, value in os.environ.items() if key not in unset}
    command = [sys.executable, "setup.py", *(arguments or ("--quiet", "build_ext", "--inplace"))]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=500, env={**kept, **environment})


def outcome(tree: Path) -> BuildRecord:
    record = build_record.read(tree / "hires_gan/ops")
    assert record is not None
    there = {path.name for path in (tree / "hires_gan/ops").glob("*.so")}
    assert there == {f"native_{device}.abi3.so" for device, library in record.libraries.items() if library.built}
    return record


def test_a_choice_that_there_is_not(tree: Path) -> None:
    done = run_setup(tree, HIRES_GAN_BUILD="gpu")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "HIRES_GAN_BUILD is 'gpu': set it to cuda, cpu or none, or unset it to build what can be built"
    )


def test_none_builds_nothing_and_removes_what_was_there(tree: Path) -> None:
    (tree / "hires_gan/ops/native_cpu.abi3.so").touch()
    done = run_setup(tree, HIRES_GAN_BUILD="none")
    assert done.returncode == 0, done.stderr
    assert {library.why for library in outcome(tree).libraries.values()} == {"HIRES_GAN_BUILD was none"}
    assert "compiled ops for cuda: not built: HIRES_GAN_BUILD was none" in done.stderr


def test_without_torch_the_package_installs_all_the_same(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text("raise ImportError('No module named torch')\n")
    done = run_setup(tree, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "pip's build isolation hides the installed one" in outcome(tree).libraries["cpu"].why
    done = run_setup(tree, PYTHONPATH=str(tmp_path), HIRES_GAN_BUILD="cpu")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("HIRES_GAN_BUILD is cpu, but the library for cpu was not built: ")


def test_without_a_compiler_the_package_installs_all_the_same(tree: Path) -> None:
    done = run_setup(tree, CXX="no-such-compiler")
    assert done.returncode == 0, done.stderr
    why = "there is no C++ compiler: no-such-compiler is not on the PATH"
    assert {library.why for library in outcome(tree).libraries.values()} == {why}


def test_a_compiler_that_fails_leaves_its_error(tree: Path) -> None:
    (tree / "csrc/stand_in_cpu.cpp").write_text("int broken( { }\n")
    done = run_setup(tree)
    assert done.returncode == 0, done.stderr
    library = outcome(tree).libraries["cpu"]
    assert "stand_in_cpu.cpp:1" in library.error
    assert "error:" in library.error
    assert library.error in library.log
    assert library.error in done.stderr
    done = run_setup(tree, HIRES_GAN_BUILD="cpu", CXX="/bin/false")
    assert done.returncode == 1, "asked for, and not there"
    assert "/bin/false" in outcome(tree).libraries["cpu"].error


def test_the_cpu_library_is_built_where_the_cuda_library_fails(tree: Path) -> None:
    (tree / "csrc/stand_in_cuda.cu").write_text("int broken = unknown;\n")
    done = run_setup(tree, TORCH_CUDA_ARCH_LIST="9.0")
    assert done.returncode == 0, done.stderr
    record = outcome(tree)
    assert record.libraries["cpu"].built
    assert record.sources == build_record.fingerprint(tree / "csrc")
    assert not record.libraries["cuda"].built
    if record.toolkit:
        assert "stand_in_cuda.cu(1)" in record.libraries["cuda"].error


def test_a_named_toolkit_that_is_none(tree: Path, tmp_path: Path) -> None:
    done = run_setup(tree, HIRES_GAN_BUILD="cuda", CUDA_HOME=str(tmp_path))
    assert done.returncode == 1
    assert f"CUDA_HOME is {tmp_path}, where there is no include/cuda_runtime.h" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_wheel_holds_the_library_and_the_record(tree: Path, tmp_path: Path) -> None:
    (tree / "hires_gan/ops/native_cuda.abi3.so").touch()  # of an earlier build in place
    done = run_setup(tree, "--quiet", "bdist_wheel", "--dist-dir", str(tmp_path), HIRES_GAN_BUILD="cpu")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert "-cp311-abi3-" in wheel.name
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"hires_gan/ops/native_cpu.abi3.so", "hires_gan/ops/build.json", "hires_gan/toolkit.py"} <= names
    assert "hires_gan/ops/native_cuda.abi3.so" not in names


# The libraries themselves


def test_the_self_test_passes_and_would_not_pass_a_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    if not native.available("cpu"):
        pytest.skip(f"needs the compiled ops: {native.why_not('cpu')}")
    assert self_test.self_test("cpu") is None
    monkeypatch.setattr(self_test, "SWISH", [0.0, *self_test.SWISH[1:]])
    problem = self_test.self_test("cpu")
    assert problem is not None
    assert problem.startswith("bias_act with swish is [-0.366")


def test_a_self_test_without_a_library_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(native._reasons, "cpu", "it was not built")
    assert "it was not built" in str(self_test.self_test("cpu"))


def test_the_module_says_what_is_there() -> None:
    done = subprocess.run([sys.executable, "-m", "hires_gan.ops"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == ["compiled ops, CPU", "compiled ops, CUDA"]


LOAD = """
import sys, torch
for path in sys.argv[1:]:
    torch.ops.load_library(path)
print(torch.version.cuda)
"""


def foreign_symbols(library: Path) -> list[str]:
    """The C++ names of libtorch, and the CUDA runtime's names, that a library needs from outside."""
    if shutil.which("nm") is None:
        pytest.skip("needs nm, of binutils")
    done = subprocess.run(["nm", "-DC", "--undefined-only", str(library)], capture_output=True, text=True, check=True)
    names = [line.split(maxsplit=1)[1] for line in done.stdout.splitlines()]
    assert any(name.startswith(("aoti_torch_", "torch_")) for name in names), "it registers nothing"
    return [name for name in names if name.startswith(("c10::", "at::", "torch::", "cuda", "__cuda"))]


@pytest.mark.parametrize("device", native.DEVICES)
def test_only_the_stable_interface_of_libtorch_is_needed(device: str) -> None:
    library = native.record_path().parent / f"native_{device}.abi3.so"
    if not library.is_file():
        pytest.skip(f"needs the compiled ops: {native.why_not(device)}")
    assert foreign_symbols(library) == []


@pytest.mark.slow
def test_the_cuda_half_compiles_for_one_architecture_and_loads(tree: Path) -> None:
    """Without a GPU too: the code for it is not run, but its library is loaded and its kernels are registered."""
    found = find_toolkit()
    if found.root is None or native.torch.version.cuda is None:
        pytest.skip(f"needs a CUDA toolkit and a CUDA torch: {found.how}")
    shutil.rmtree(tree / "csrc")
    shutil.copytree(ROOT / "csrc", tree / "csrc")
    done = run_setup(tree, HIRES_GAN_BUILD="cuda", TORCH_CUDA_ARCH_LIST="9.0")
    assert done.returncode == 0, done.stderr[-3000:]
    record = outcome(tree)
    assert record.architectures == ("9.0",)
    libraries = [tree / f"hires_gan/ops/native_{device}.abi3.so" for device in native.DEVICES]
    assert b"sm_90" in libraries[1].read_bytes()
    assert [name for library in libraries for name in foreign_symbols(library)] == []
    loaded = subprocess.run([sys.executable, "-c", LOAD, *map(str, libraries)], capture_output=True, text=True)
    assert loaded.returncode == 0, loaded.stderr
