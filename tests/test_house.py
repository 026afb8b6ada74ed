"""The rules of the house: who may import whom, how long things may be, what is never called, what starts fast."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "hires_gan"
FILES = sorted(PACKAGE.rglob("*.py"))

# From the top of the house to the ground; a room may import from its own floor and from those below.
FLOORS: list[set[str]] = [
    {"cli", "__main__"},
    {"config", "yaml_text"},
    {"bench", "doctor"},
    {"training"},
    {"evaluation"},
    {"inference"},
    {"tracking"},
    {"recipes"},
    {"checkpoint", "ema"},
    {"losses"},
    {"augment"},
    {"networks"},
    {"data"},
    {"randomness", "code"},
    {"ops"},
    {"errors", "settings", "progress", "cores", "memory", "toolkit", "__version__"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FACE = {"load": "inference"}  # what the package's own __init__ offers, and the room where it lives


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def is_type_checking(node: ast.AST) -> bool:
    if not isinstance(node, ast.If):
        return False
    test = node.test
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def reached(node: ast.AST) -> Iterator[ast.AST]:
    """Every node that can run, those inside functions too; blocks for type checkers alone are left out."""
    yield node
    for child in ast.iter_child_nodes(node):
        if is_type_checking(child):
            for other in child.orelse:  # type: ignore[attr-defined]
                yield from reached(other)
        else:
            yield from reached(child)


def imported_rooms(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and room of every import from the package."""
    for node in reached(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "hires_gan":
                    yield node.lineno, [*alias.name.split("."), "__version__"][1]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports within the package are absolute"
            parts = (node.module or "").split(".")
            if parts[0] == "hires_gan":
                for room in parts[1:2] or [FACE.get(alias.name, alias.name) for alias in node.names]:
                    yield node.lineno, room


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def floor_of(room: str) -> int | None:
    """The number of the floor, 0 at the top; a module like `config_errors` lives with `config`."""
    return FLOOR.get(room, FLOOR.get(room.split("_")[0]))


def test_the_list_of_rooms_is_whole() -> None:
    imported = {other for path in FILES for _, other in imported_rooms(parsed(path))}
    rooms = {room_of(path) for path in FILES} - {"__init__"}
    assert {room for room in rooms | imported if floor_of(room) is None} == set()


def test_nobody_imports_from_a_floor_above() -> None:
    wrong = []
    for path in FILES:
        room = room_of(path)
        if room == "__init__":  # the package's face hands out what lives inside, on first use
            continue
        for line, other in imported_rooms(parsed(path)):
            if (floor_of(other) or 0) < (floor_of(room) or 0):
                wrong.append(f"{name_of(path)}:{line} ({room}) imports {other}")
    assert wrong == []


def test_ops_know_only_torch() -> None:
    wrong = [
        f"{name_of(path)}:{line} imports {other}"
        for path in FILES
        if room_of(path) == "ops"
        for line, other in imported_rooms(parsed(path))
        if other not in {"ops", "errors"}
    ]
    assert wrong == []


def test_the_import_rule_sees_what_it_must_see() -> None:
    source = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from hires_gan.cli import main
else:
    from hires_gan import data, checkpoint as c
def f():
    import hires_gan.training.run
    class A:
        def g(self):
            from hires_gan.networks.layers import lrelu
from hires_gan import load, __version__
import torch
"""
    rooms = [room for _, room in imported_rooms(ast.parse(source))]
    assert rooms == ["data", "checkpoint", "training", "networks", "inference", "__version__"]


def test_only_the_backend_and_the_entry_know_processes() -> None:
    """Recipes, networks and losses compute on what they are given; no collective runs inside a phase."""
    wrong = []
    for path in FILES:
        if room_of(path) in {"recipes", "networks", "losses", "ema", "augment", "ops", "randomness"}:
            for node in ast.walk(parsed(path)):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                names += (
                    [f"torch.{node.attr}"] if isinstance(node, ast.Attribute) and node.attr == "distributed" else []
                )
                wrong += [
                    f"{name_of(path)}:{node.lineno}" for n in names if n.startswith(("torch.distr", "accelerate"))
                ]
    assert wrong == []


def test_modules_are_named_for_what_they_hold() -> None:
    vague = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "tools"}
    names = [
        name_of(path)
        for path in (PACKAGE, *PACKAGE.rglob("*"))
        if path.stem in vague and "__pycache__" not in path.parts
    ]
    assert names == []


def test_no_file_is_over_500_lines() -> None:
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {name: length for name, length in lengths.items() if length > 500} == {}


def functions() -> Iterator[tuple[int, str]]:
    """Length in lines, docstring and all, and place of every function."""
    for path in FILES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                yield node.end_lineno - node.lineno + 1, f"{name_of(path)}:{node.lineno} {node.name}"


def test_no_function_is_over_60_lines_and_few_are_over_40() -> None:
    found = sorted(functions(), reverse=True)
    long = [place for place in found if place[0] > 40]
    print(f"{len(long)} of {len(found)} functions are over 40 lines: {long}")
    assert [place for place in found if place[0] > 60] == []
    assert len(long) <= len(found) // 100


def dotted(node: ast.AST) -> str:
    """`a.b.c` of an attribute chain, or nothing."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def private_torch(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Uses of torch's private names, however they are imported; `__version__` and its like are public."""
    aliases: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            aliases |= {(alias.asname or alias.name.split(".")[0]): alias.name for alias in node.names}
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
            aliases |= {(alias.asname or alias.name): f"{node.module}.{alias.name}" for alias in node.names}
        else:
            continue
        yield from ((node.lineno, module) for module in modules if is_private(module))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            first, _, rest = dotted(node).partition(".")
            name = f"{aliases.get(first, first)}.{rest}"
            if is_private(name):
                yield node.lineno, name


def is_private(name: str) -> bool:
    parts = name.split(".")
    return parts[0] in {"torch", "torchvision"} and any(p.startswith("_") and not p.startswith("__") for p in parts[1:])


WITHOUT_PUBLIC_NAMES = {
    # How a recording is given up whose end has failed.
    "hires_gan/training/graphs.py": ("torch._C", "torch._C._cuda_endAllocateToPool", "torch._C._cuda_releasePool"),
    # Which node of autograd's graph runs, and which one was made last: in a benchmark, to tell whose gradient an op is.
    "hires_gan/bench/train_layers.py": (
        "torch._C",
        "torch._C._current_autograd_node",
        "torch.autograd._get_sequence_nr",
    ),
}


def test_no_private_function_of_torch_is_used() -> None:
    """But for those that have no public name."""
    used = {(name_of(path), name) for path in FILES for _, name in private_torch(parsed(path))}
    assert used == {(path, name) for path, names in WITHOUT_PUBLIC_NAMES.items() for name in names}


def test_the_rule_on_private_names_sees_what_it_must_see() -> None:
    source = """
import torch
import torch.nn.functional as F
from torch import nn
from torch._inductor import config
torch._C.x(); F._pad(1); nn.modules.utils._pair; torch.__version__; self._own; torch.nn.Module()
"""
    assert {name for _, name in private_torch(ast.parse(source))} == {
        "torch._inductor.config",
        "torch._C",
        "torch._C.x",
        "torch.nn.functional._pad",
        "torch.nn.modules.utils._pair",
    }


DANGEROUS_CALLS = {
    "eval",
    "exec",
    "__import__",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "torch.load",
    "os.system",
}
DANGEROUS_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}


def dangers(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Whatever could execute something that a file holds, or write where an archive says."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, a.name) for a in node.names if a.name.split(".")[0] in DANGEROUS_MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in DANGEROUS_MODULES:
            yield node.lineno, node.module or ""
        elif isinstance(node, ast.Call):
            name = dotted(node.func)
            if name in DANGEROUS_CALLS or name.split(".")[-1] in {"extractall", "unpack_archive"}:
                yield node.lineno, name
            for keyword in node.keywords:
                value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
                if (keyword.arg, value) in {("shell", True), ("allow_pickle", True), ("weights_only", False)}:
                    yield node.lineno, f"{keyword.arg}={value}"


def test_nothing_executes_from_a_file() -> None:
    assert [f"{name_of(path)}:{line} {name}" for path in FILES for line, name in dangers(parsed(path))] == []


def test_the_rule_on_dangers_sees_what_it_must_see() -> None:
    source = """
import pickle
from marshal import loads
eval("1"); module.eval(); yaml.load(f); yaml.safe_load(f); tar.extractall(); subprocess.run(c, shell=True)
np.load(f, allow_pickle=True); np.load(f, allow_pickle=False)
"""
    found = [name for _, name in dangers(ast.parse(source))]
    assert sorted(found) == [
        "allow_pickle=True",
        "eval",
        "marshal",
        "pickle",
        "shell=True",
        "tar.extractall",
        "yaml.load",
    ]


def modules_after(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded behind some code."""
    listing = "\nimport sys\nprint('modules:', *sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code + listing], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:])


def test_importing_the_package_is_cheap() -> None:
    loaded = modules_after("import hires_gan; assert hires_gan.__version__")
    assert "hires_gan" in loaded
    assert not loaded & {"torch", "torchvision", "mlflow", "numpy", "pydantic"}


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["prepare", "--help"], ["config", "--help"]])
def test_help_needs_neither_torch_nor_mlflow(arguments: list[str]) -> None:
    code = f"""
import sys
from hires_gan import cli
sys.argv = ["hires-gan", *{arguments!r}]
try:
    cli.main()
except SystemExit as end:
    assert not end.code, end.code
"""
    loaded = modules_after(code)
    assert "typer" in loaded
    assert not loaded & {"torch", "torchvision", "mlflow", "accelerate", "webdataset"}


def test_load_is_offered_by_the_package() -> None:
    code = "import hires_gan; assert hires_gan.load.__module__ == 'hires_gan.inference.loading'"
    assert "torch" in modules_after(code)


def test_the_package_has_no_other_attributes() -> None:
    import hires_gan

    with pytest.raises(AttributeError, match="module 'hires_gan' has no attribute 'nonsense'"):
        hires_gan.nonsense  # noqa: B018
