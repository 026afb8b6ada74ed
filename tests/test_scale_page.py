"""`docs/scale.md`: every figure that the page computes is computed again, and what it says of the code holds."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest
import torch

from hires_gan.bench.scaling_measure import buckets_of
from hires_gan.bench.scaling_model import Conditions, Network, PhaseCost, StepCost, all_reduce, control, step
from hires_gan.config import Configuration, load_configuration
from hires_gan.data import mixed, store
from hires_gan.data.command import PrepareOptions
from hires_gan.data.manifest import INDEX_ROW, LABEL, Manifest, ShardEntry
from hires_gan.data.opening import resolve_lanes
from hires_gan.data.stream_settings import StreamSettings
from hires_gan.data.writer import shard_name, write_manifest
from hires_gan.recipes.families import build_recipe
from hires_gan.recipes.protocol import Recipe
from hires_gan.training.flat import FlatGradients
from hires_gan.training.shares import share

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \|[^|]*\|$", re.MULTILINE)
UNITS = {
    "": 1, "%": 1e-2, "million": 1e6, "billion": 1e9,
    "bytes": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "MB/s": 1e6, "GB/s": 1e9,
    "µs": 1e-6, "ms": 1e-3, "s": 1, "h": 3600, "days": 1, "images/s": 1, "/s": 1, "USD": 1, "µUSD": 1e-6, "cores": 1,
}  # fmt: skip
OPERATORS: dict[type, Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}


def evaluate(formula: str, known: dict[str, float]) -> float:
    """Arithmetic over known names."""

    def value(node: ast.expr) -> float:
        if isinstance(node, ast.BinOp):
            return OPERATORS[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.Name):
            return known[node.id]
        assert isinstance(node, ast.Constant), ast.dump(node)
        return float(node.value)

    return value(ast.parse(formula, mode="eval").body)


def shown(text: str) -> tuple[float, float]:
    """The number that a cell shows, and half a unit of its last digit."""
    number, _, unit = text.strip().partition(" ")
    digits = Decimal(number.replace(",", ""))
    return float(digits) * UNITS[unit], 0.5 * 10 ** int(digits.as_tuple().exponent) * UNITS[unit]


def figures() -> dict[str, tuple[str, str]]:
    rows = [(name, origin.strip(), value) for name, origin, value in ROW.findall(PAGE)]
    assert len({name for name, _, _ in rows}) == len(rows)
    return {name: (origin, value) for name, origin, value in rows}


def computed() -> dict[str, float]:
    """Each figure by its formula; what is given, measured or in the code as the page shows it."""
    known: dict[str, float] = {}
    for name, (origin, value) in figures().items():
        known[name] = evaluate(origin.strip("`"), known) if origin.startswith("`") else shown(value)[0]
    return known


def test_the_page_is_read_whole():
    tables = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith(("| name", "| ---"))]
    assert len(figures()) == len(tables) > 130
    assert {origin for origin, _ in figures().values() if not origin.startswith("`")} == {"given", "measured", "code"}


@pytest.mark.parametrize("name", [name for name, (origin, _) in figures().items() if origin.startswith("`")])
def test_a_figure_is_what_its_formula_gives(name):
    text = figures()[name][1]
    value, half = shown(text)
    found = computed()[name]
    assert abs(found - value) <= half * 1.001, f"{name} is {found:.6g}, the page shows {text}"


def test_it_would_notice_a_wrong_figure():
    assert shown("3.52 GB") == (3.52e9, pytest.approx(5e6))
    assert shown("39,347") == (39347, 0.5)
    assert evaluate("a * (b - 1) / 2 ** 3", {"a": 4, "b": 5}) == 2
    with pytest.raises(KeyError):
        evaluate("unknown + 1", {})


def test_names_in_the_text_are_in_the_tables():
    text = "\n".join(line for line in PAGE.splitlines() if not line.startswith("|"))
    named = set(re.findall(r"`([a-z_0-9]+)`", text)) - {"prepare"}
    assert named <= set(figures())


def test_what_the_page_says_of_the_code(tmp_path):
    known = computed()
    assert known["index_row"] == INDEX_ROW.itemsize
    assert known["all_labels"] == known["images"] * LABEL.itemsize
    assert known["default_images"] == PrepareOptions(resolution=1024).images_per_shard
    assert known["lanes"] == resolve_lanes("auto", int(known["batch"]))
    assert known["lanes_64"] == resolve_lanes("auto", 64)
    assert known["downloads"] == StreamSettings().downloads
    assert abs(known["piece"] - store._LARGEST) <= shown(figures()["piece"][1])[1]
    assert known["looked_shards"] == mixed.SHARDS_LOOKED_AT
    assert known["look_time"] == mixed.SECONDS
    assert "the default is 50 GB" in PAGE
    assert StreamSettings().cache_gb == 50
    side = 4**15
    assert side // 4 < known["images"] <= side == known["network"]


def test_as_many_headers_are_looked_at_as_the_page_says():
    """Of a set with as many columns and more shards than are looked at."""
    entries = tuple(ShardEntry(name=shard_name(n), samples=10_000, bytes=1, sha256="a" * 64) for n in range(500))
    columns = ("image", "image.256", "image.64")
    manifest = Manifest(resolution=1024, count=5_000_000, columns=columns, filter="box", shards=entries)
    assert len(columns) == computed()["columns"]
    assert len(mixed.rows_to_look_at(manifest)) * len(columns) == computed()["headers"]


def test_a_manifest_has_as_many_bytes_as_the_page_says(tmp_path):
    """Two manifests of shards like those of the page: the difference is that of their entries."""
    sizes = []
    for count in (100, 1100):
        folder = tmp_path / str(count)
        folder.mkdir()
        entries = tuple(
            ShardEntry(name=shard_name(n), samples=10_000, bytes=3_523_040_000 + n, sha256="a" * 64)
            for n in range(count)
        )
        manifest = Manifest(
            resolution=1024, count=10_000 * count, columns=("image", "image.256"), filter="box", shards=entries
        )
        write_manifest(folder, manifest)
        sizes.append((folder / "manifest.json").stat().st_size)
    assert (sizes[1] - sizes[0]) / 1000 == pytest.approx(computed()["entry_bytes"], rel=0.02)


@pytest.fixture(scope="module")
def plan() -> Configuration:
    return load_configuration(ROOT / "configs" / "stylegan2_ffhq1024.yaml", [])


@pytest.fixture(scope="module")
def recipe(plan) -> Recipe:
    return build_recipe(plan.recipe, plan.batch.size, torch.bfloat16, 0, None, ("image",))


def agree(name: str, value: float) -> None:
    """The page shows it, rounded."""
    shows, half = shown(figures()[name][1])
    assert abs(value - shows) <= half * 1.001, f"{name} is {value}, the page shows {shows}"


def test_what_the_page_says_of_the_networks(recipe):
    stage = recipe.stages[-1]
    for player, letter in (("generator", "g"), ("discriminator", "d")):
        parameters = dict(recipe.players[player].named_parameters())
        live = FlatGradients([parameters[name] for name in stage.optimizers[player].live])
        agree(f"gradient_{letter}", sum(buckets_of(live)[0]))
        agree(f"weights_{letter}", sum(one.numel() for one in parameters.values()))
    intervals = {phase.name: phase.interval for phase in recipe.phases(stage.start)}
    known = computed()
    assert intervals == {"generator": 1, "path_length": known["every_g"], "discriminator": 1, "r1": known["every_d"]}


def test_what_the_page_says_of_the_configuration(plan, recipe):
    known, stage = computed(), recipe.stages[-1]
    assert (known["batch"], known["group"]) == (stage.batch, stage.group)
    assert plan.evaluation.every_kimg == plan.checkpoint.every_kimg == known["every"] / 1000
    assert plan.tracking.every_kimg == known["log_every"] / 1000
    assert plan.run.total_kimg == known["run_images"] / 1000
    own = [len(share(stage.batch, stage.group, rank, 16)) for rank in range(16)]
    assert sum(count > 0 for count in own) == known["busy"] == 16 * (1 - known["idle_16"])
    assert max(own) == known["local"]


def test_the_page_and_the_model_agree():
    known, defaults = computed(), Network()
    assert (known["node"], known["intra"], known["inter"]) == (defaults.per_node, defaults.intra, defaults.inter)
    assert known["hop"] == pytest.approx(defaults.hop_control)
    for gpus in (8, 64, 1024):
        assert control(gpus, defaults) == pytest.approx(known[f"control_{gpus}"])
    prompt = Network(hop_intra=0.0, hop_inter=0.0)
    for gpus in (8, 16, 1024):
        assert all_reduce(int(known["sent"]), gpus, prompt) == pytest.approx(known[f"sum_{gpus}"])
    cost = StepCost({"all": PhaseCost(1, known["step_time"], 0.0, (int(known["sent"]),))}, 4)
    late = {gpus: step(cost, 4, 4 * gpus, gpus, Conditions(prompt)).control for gpus in (1024, 1220, 1240, 2048)}
    assert late[1024] == late[1220] == 0 < late[1240], "control_hidden is between them"
    assert 1220 < known["control_hidden"] < 1240
    assert late[2048] == pytest.approx(known["late_2048"], rel=1e-2)
