"""`bench train --without`: each part is left out indeed, and what is computed without it is the same."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, get_args

import pytest
import torch
from bench_shards import pngs, write_shards
from small_plans import SMALL, quick_rates, run
from steps_without import CONFIGS, CPU, Ops, one_step, plan_of, stand_of
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hires_gan.bench.plain_steps import check_without, follow_one_by_one, read
from hires_gan.bench.train import Request, bench_train
from hires_gan.bench.train_images import open_images, supply
from hires_gan.bench.train_steps import Stand
from hires_gan.bench.train_table import table
from hires_gan.ema import averaged_copy, update_average
from hires_gan.errors import UsageError
from hires_gan.ops import selection
from hires_gan.ops.conv2d import conv2d, layout
from hires_gan.ops.leaving_out import PARTS, Part, leaving_out, left_out
from hires_gan.randomness import RandomSource, SampleRandom
from hires_gan.recipes.protocol import Step
from hires_gan.training.feed import Feed
from hires_gan.training.settings import Plan

EXACT = ["channels-last", "derivatives", "epilogue", "one-pass", "average", "unread"]
"""Without these, the same is computed; without `device-draws` or `sample-draws`, other numbers are drawn."""


PENALISED = {
    "demo": (),
    "stylegan2_demo": ("recipe.loss.r1=1", "recipe.loss.path_length=2"),
    "munit_demo": ("recipe.loss.r1=1",),
}
PHASES = {
    "demo": {"generator", "discriminator"},
    "stylegan2_demo": {"generator", "path_length", "discriminator", "r1"},
    "munit_demo": {"generator", "discriminator", "r1"},
}
"""What is differentiated twice is there: Progressive GAN's gradient penalty belongs to its discriminator's phase."""


def weights_behind_steps(plan: Plan, steps: int = 2) -> dict[str, Tensor]:
    """Of all players and of the average; in the first step every phase is due."""
    stand, feed = one_step(plan)
    for _ in range(steps):
        stand.step(feed)
    return {
        f"{part}.{name}": tensor.clone()
        for part, tensors in stand.backend.tensors().items()
        if not part.endswith(".optimizer")
        for name, tensor in tensors.items()
    }


def losses_and_gradients(plan: Plan) -> dict[str, Tensor]:
    """Of every phase, before any step."""
    stand, feed = one_step(plan)
    batch, found = feed.take(), dict[str, Tensor]()
    random = SampleRandom(RandomSource(plan.run.seed), torch.arange(len(batch)))
    for phase in stand.phases:
        weights = dict(stand.recipe.players[phase.player].named_parameters())
        live = {name: weights[name].requires_grad_(True) for name in stand.place.stage.optimizers[phase.player].live}
        losses = phase.function(Step(batch, random, None)).losses
        found |= {f"{phase.name}: {name}": loss.detach() for name, loss in losses.items()}
        total = torch.stack([loss.sum() for loss in losses.values()]).sum()
        gradients = torch.autograd.grad(total, list(live.values()), allow_unused=True, materialize_grads=True)
        found |= {f"{phase.name}: d {name}": one for name, one in zip(live, gradients, strict=True)}
        for weight in live.values():
            weight.requires_grad_(False)
    return found


def agree(found: dict[str, Tensor], expected: dict[str, Tensor], rtol: float, atol: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=atol, msg=lambda text, name=name: name + text)


@contextmanager
def judged(stand: Stand) -> Iterator[list[int]]:
    """How many images went into each forward pass of a discriminator."""
    seen: list[int] = []
    networks = [stand.recipe.players["discriminator"]]
    if stand.images.domains != ("image",):
        networks = [networks[0].discriminator(name) for name in stand.images.domains]
    handles = [one.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0]))) for one in networks]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@pytest.fixture
def native() -> Iterator[None]:
    """The compiled ops, in which the epilogue is one."""
    with selection.backend("native"):
        yield


def cells(parts: Iterable[str]) -> list[tuple[str, str]]:
    """Demos with parts that they have."""
    return [(demo, part) for demo in PENALISED for part in parts if (demo, part) != ("demo", "epilogue")]


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(("demo", "part"), cells(EXACT))
def test_without_a_part_the_same_weights_are_learnt(demo, part):
    """All phases, with R1 and path lengths, by which derivatives of the second order go."""
    plan = plan_of(demo, *PENALISED[demo])
    expected = weights_behind_steps(plan)
    with leaving_out([part]):
        agree(weights_behind_steps(plan), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(("demo", "part"), cells(["channels-last", "derivatives", "epilogue", "one-pass"]))
def test_without_a_part_losses_and_gradients_are_the_same(demo, part):
    """An optimizer's step may hide a factor: Adam divides by what gradients are large."""
    plan = plan_of(demo, *PENALISED[demo])
    expected = losses_and_gradients(plan)
    with leaving_out([part]):
        found = losses_and_gradients(plan)
    assert {name.split(":")[0] for name in found} == PHASES[demo]
    agree(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(
    ("demo", "part", "precision"),
    [
        (demo, part, precision)
        for demo, part in cells(["channels-last", "derivatives", "epilogue", "one-pass"])
        for precision in ("bf16", "fp16")
        if (demo, precision) != ("munit_demo", "fp16")
    ],
)
def test_in_half_precision_losses_are_the_same_but_for_rounding(demo, part, precision):
    """As rows have it from `half` on; MUNIT has no float16."""
    plan = plan_of(demo, *PENALISED[demo], precision=precision)
    expected = losses_and_gradients(plan)
    with leaving_out([part]):
        found = losses_and_gradients(plan)
        weights = weights_behind_steps(plan)
    assert all(value.isfinite().all() for value in [*found.values(), *weights.values()])
    losses = [name for name in expected if ": d " not in name]
    agree({name: found[name] for name in losses}, {name: expected[name] for name in losses}, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("demo", "together", "apart"),
    [
        ("demo", [8, 4], [4, 4, 4]),
        ("stylegan2_demo", [8], [4, 4]),
        ("munit_demo", [8, 8], [4, 4, 4, 4]),
    ],
)
def test_reals_and_fakes_go_one_after_the_other(demo, together, apart):
    """Progressive GAN's penalty has a pass of its own, and MUNIT two domains."""
    for parts, expected in (((), together), (("one-pass",), apart)):
        stand, feed = one_step(plan_of(demo))
        with leaving_out(parts), judged(stand) as seen:
            stand.alone(next(phase for phase in stand.phases if phase.name == "discriminator"), feed.take())
        assert seen == expected


@pytest.mark.usefixtures("native")
def test_the_epilogue_is_no_op_of_its_own():
    for parts, there in (((), True), (("epilogue",), False)):
        stand, feed = one_step(plan_of("stylegan2_demo"))
        with leaving_out(parts), Ops() as ops:
            stand.alone(next(phase for phase in stand.phases if phase.name == "generator"), feed.take())
        assert ("hires_gan.epilogue.default" in ops.names) is there
        assert "hires_gan.bias_act.default" in ops.names


def test_derivatives_of_convolutions_are_torchs_own():
    x, w = torch.randn(2, 3, 5, 5, requires_grad=True), torch.randn(4, 3, 3, 3, requires_grad=True)
    names = {}
    for parts in ((), ("derivatives",)):
        with leaving_out(parts):
            y = conv2d(x, w)
            assert y.grad_fn is not None
            names[parts] = type(y.grad_fn).__name__
            (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
            dx.square().sum().backward()
    assert names == {(): "_ConvolveBackward", ("derivatives",): "ConvolutionBackward0"}


def test_convolutions_compute_in_contiguous_memory_on_a_gpu():
    assert (layout("cuda"), layout("cpu")) == (torch.channels_last, None)
    with leaving_out(["channels-last"]):
        assert (layout("cuda"), layout("cpu")) == (torch.contiguous_format, None)


@pytest.mark.gpu
def test_convolutions_on_a_gpu_lie_as_they_are_told_to():
    x, w = torch.randn(2, 8, 16, 16, device="cuda"), torch.randn(8, 8, 3, 3, device="cuda", requires_grad=True)
    for parts, wanted in (((), torch.channels_last), (("channels-last",), torch.contiguous_format)):
        with leaving_out(parts):
            y = conv2d(x, w, padding=(1, 1))
            (dw,) = torch.autograd.grad(y.sum(), w, create_graph=True)
        assert y.is_contiguous(memory_format=wanted) and dw.is_contiguous(memory_format=wanted)


class Convolved(TorchDispatchMode):
    """Of what is convolved, and of the weights by which: whether it lies in channels_last alone."""

    def __init__(self) -> None:
        super().__init__()
        self.last: list[bool] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            lie = ((one.is_contiguous(), one.is_contiguous(memory_format=torch.channels_last)) for one in args[:2])
            self.last += [last and not plain for plain, last in lie]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["synthetic", "real"])
@pytest.mark.parametrize("demo", ["demo", "stylegan2_demo", "munit_demo"])
def test_nothing_that_is_convolved_lies_in_channels_last(demo, kind, tmp_path):
    """Real images, which decoders give in it, and MUNIT's crops among it."""
    plain, pairs = f"data.shards={tmp_path / 'a'}", f"data.domains={{a: {tmp_path / 'a'}, b: {tmp_path / 'b'}}}"
    overrides = {"munit_demo": ("recipe.resolution=64", "recipe.crop=32", pairs)}.get(demo, (plain,))
    plan = plan_of(demo, *overrides)
    for seed, name in enumerate(("a", "b")):
        write_shards(tmp_path / name, pngs(8, plan.recipe.resolution, seed), plan.recipe.resolution)
    counts = {}
    for parts in ((), ("channels-last",)):
        with leaving_out(parts):
            images = open_images(plan, kind, CPU)
            stand = Stand(plan, images, CPU, None, 4)
            with supply(plan, images, stand.place.stage, iter([0]), CPU) as feed, Convolved() as seen:
                batch = feed.take()
                for phase in stand.phases:
                    stand.alone(phase, batch)
        counts[parts] = sum(seen.last)
    assert counts[()] > 4 and counts["channels-last",] == 0


def test_real_images_that_lie_contiguously_are_the_same_and_waited_for(tmp_path):
    """By the feed of a run, which copies ahead, and counts."""
    write_shards(tmp_path / "a", pngs(8, 8), 8)
    plan, batches = plan_of("demo", f"data.shards={tmp_path / 'a'}"), []
    for parts in ((), ("channels-last",)):
        with leaving_out(parts):
            images = open_images(plan, "real", CPU)
            with supply(plan, images, stand_of(plan).place.stage, iter([0]), CPU) as feed:
                batches.append(feed.take())
            assert type(feed) is Feed and feed.waited > 0
    before, behind = batches
    assert not before.images.is_contiguous() and behind.images.is_contiguous()
    assert torch.equal(before.images, behind.images)
    assert (before.labels, before.domains) == (behind.labels, behind.domains)


def test_weights_and_images_lie_contiguously():
    plan = plan_of("stylegan2_demo")
    for parts, contiguous in (((), False), (("channels-last",), True)):
        with leaving_out(parts):
            stand, feed = one_step(plan)
            tensors = [stand.backend.average.state_dict(), stand.recipe.players["discriminator"].state_dict()]
            large = [t for part in tensors for t in part.values() if t.ndim == 4 and min(t.shape[1:3]) > 1]
            assert large and all(t.is_contiguous() is contiguous for t in [*large, feed.take().images])


def test_the_average_follows_one_parameter_after_the_other():
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    average, expected = averaged_copy(network), averaged_copy(network)
    with torch.no_grad():
        for tensor in itertools.chain(network.parameters(), network.buffers()):
            tensor.add_(1)
    with Ops() as ops:
        follow_one_by_one(average, network, 0.75)
    assert ops.names.count("aten.lerp_.Scalar") == 4 and not any("_foreach" in name for name in ops.names)
    update_average(expected, network, 0.75)
    for one, other in zip(average.state_dict().values(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-14, atol=0)


def test_a_step_follows_so_and_reads_what_it_would_leave(monkeypatch):
    """Neither happens without being asked for."""
    done: list[str] = []
    monkeypatch.setattr("hires_gan.bench.train_steps.follow_one_by_one", lambda *_: done.append("average"))
    monkeypatch.setattr(
        "hires_gan.bench.train_steps.read", lambda means: done.append(f"{'loss/generator' in means} read")
    )
    stand, feed = one_step(plan_of("demo"))
    stand.step(feed)
    assert done == []
    with leaving_out(["average", "unread"]):
        stand.step(feed)
    assert done == ["True read", "average"]


def test_what_is_read_is_the_value():
    """Of which a tensor without memory has none."""
    read({"loss/generator": torch.zeros(()), "average/w": torch.zeros(3)})
    for shape in ((), (3,)):
        with pytest.raises((RuntimeError, NotImplementedError)):
            read({"loss/generator": torch.zeros(()), "last": torch.zeros(shape, device="meta")})


def test_parts_are_back_behind_an_error_and_add_up():
    assert not any(map(left_out, PARTS))
    with pytest.raises(RuntimeError), leaving_out(["average"]):
        with leaving_out(["unread", "average"]):
            assert left_out("unread") and left_out("average")
        assert left_out("average") and not left_out("unread")
        raise RuntimeError
    assert not any(map(left_out, PARTS))
    with pytest.raises(ValueError, match=r"no part 'averages'; channels-last, .* are allowed; did you mean average\?"):
        leaving_out(["unread", "averages"]).__enter__()
    assert not left_out("unread")


@pytest.mark.parametrize(
    ("demo", "overrides", "part", "sentence"),
    [
        ("demo", (), "layout", "--without is 'layout'; channels-last, .* are allowed"),
        ("demo", (), "epilogue", "--without is epilogue: the family's convolutions are not modulated"),
        ("stylegan_demo", (), "epilogue", "--without is epilogue: the family's convolutions are not modulated"),
        ("stylegan_demo", (), "one-pass", "--without is one-pass: the family differentiates"),
        ("demo", ("recipe.loss.r1=1",), "one-pass", "--without is one-pass: r1 and r2 differentiate"),
        ("demo", ("levers.compile=main",), "device-draws", "set levers.graphs=false levers.compile=none as well"),
    ],
)
def test_what_cannot_be_left_out_is_refused(demo, overrides, part, sentence):
    with pytest.raises(UsageError, match=sentence):
        bench_train(plan_of(demo, *overrides), demo, Request(without=("average", part)))


@pytest.mark.parametrize("demo", ["demo", "stylegan2_demo"])
def test_a_pass_for_both_is_not_left_out_where_there_is_none(demo):
    """Two images at once are half a group; of MUNIT's images each stands for itself."""
    plan = plan_of(demo, "batch.size=2")
    with pytest.raises(UsageError, match="--without is one-pass: 2 images at once are no whole groups of 4, of which"):
        bench_train(plan, demo, Request(without=("one-pass",)))
    check_without(["one-pass"], plan_of(demo), CPU, [4])
    with pytest.raises(UsageError, match="2 images at once"):
        check_without(["one-pass"], plan_of(demo), CPU, [4, 2])
    check_without(["one-pass"], plan_of("munit_demo"), CPU, [1, 2])


def test_what_is_recorded_is_not_left_without_the_devices_draws():
    """Graphs are on by default on a GPU."""
    plan = plan_of("demo")
    with pytest.raises(UsageError, match=r"keep the first numbers.*levers\.graphs=false"):
        check_without(["device-draws"], plan, torch.device("cuda"), [4])
    check_without(["unread", "derivatives", "sample-draws"], plan, torch.device("cuda"), [4])
    check_without(["device-draws"], plan_of("demo", "levers.graphs=false"), torch.device("cuda"), [4])


def test_the_help_names_every_part(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    assert run(monkeypatch, "train", "--help") == 0
    said = capsys.readouterr().out
    assert set(get_args(Part)) == set(PARTS) and all(part in said for part in PARTS)


def test_the_record_and_the_table_say_what_was_left_out(monkeypatch, capsys, tmp_path):
    """And so do the steps."""
    quick_rates(monkeypatch)
    followed: list[float] = []
    monkeypatch.setattr(
        "hires_gan.bench.train_steps.follow_one_by_one", lambda average, network, decay: followed.append(decay)
    )
    out = tmp_path / "train.json"
    words = [
        "--without",
        "average",
        "--without",
        "unread",
        "--without",
        "average",
        "--steps",
        1,
        "--micro",
        4,
        "--out",
        out,
    ]
    assert run(monkeypatch, "train", "--config", CONFIGS / "demo.yaml", *words, *SMALL) == 0
    said, steps = capsys.readouterr().out, len(followed)
    assert f"left out: average: {PARTS['average']}" in said and "left out: unread: " in said
    assert json.loads(out.read_text())["settings"]["without"] == ["average", "unread"]
    assert steps > 0 and not left_out("average")
    record = bench_train(plan_of("demo"), "demo", Request(steps=1, micro=(4,)))
    assert record["settings"]["without"] == [] and not any("left out" in line for line in table(record))
    assert len(followed) == steps
