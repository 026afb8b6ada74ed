"""`hires-gan train`: everything is opened and checked before the first step, in the order in which it can fail."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from hires_gan import __version__, checkpoint
from hires_gan.data.domains import Domains, open_data
from hires_gan.data.loader import Loader, Request, check_decoder
from hires_gan.data.mixed import refuse_mixed
from hires_gan.data.opening import describe_order, order_of, resolve_lanes
from hires_gan.data.replacement import CorruptRows
from hires_gan.data.shard_cache import require_room
from hires_gan.errors import Failure, UsageError
from hires_gan.memory import is_out_of_memory
from hires_gan.progress import console, say
from hires_gan.recipes.families import build_recipe
from hires_gan.recipes.protocol import LabelDistribution, Recipe
from hires_gan.settings import at_resolution
from hires_gan.tracking.description import NOTE, TrainingData, description
from hires_gan.tracking.exporter import Exporter
from hires_gan.tracking.store import redact
from hires_gan.tracking.tracker import Tracker
from hires_gan.training.backends import Backend
from hires_gan.training.gallery import open_gallery
from hires_gan.training.initial_weights import open_initial, start_from
from hires_gan.training.launch import DTYPES, join_launch, set_up
from hires_gan.training.launcher import zero_stage
from hires_gan.training.memory_check import Asked, check_memory, out_of_memory, show_known, telling_too_little
from hires_gan.training.registering import SHORT_WAIT, TRACKING_WAIT, log_model, register_best
from hires_gan.training.restarts import launch_identity, restart_count, stopped_by_this_launch
from hires_gan.training.resume_rules import refuse_changes
from hires_gan.training.run_folder import RunFolder, State, check_shared, read_status
from hires_gan.training.schedule import largest_batch
from hires_gan.training.settings import Plan
from hires_gan.training.shares import share
from hires_gan.training.signals import StopRequest
from hires_gan.training.trainer import Trainer
from hires_gan.training.watch import Watch
from hires_gan.training.world import World, telling_losses
from hires_gan.training.zero import Engines


def train(plan: Plan, resolved: str) -> bool:
    """Train, from the latest checkpoint if there is one.

    Args:
        plan: The configuration.
        resolved: The same as YAML, kept beside the run.

    Returns:
        Whether the run is finished; otherwise a signal stopped it behind a checkpoint.

    Raises:
        UsageError: If the configuration does not fit the data, the launcher or the checkpoint.
        Failure: If something outside went wrong.
    """
    world = join_launch(plan.backend, plan.precision, levers=plan.levers)
    with telling_losses(world), StopRequest(world.alone) as stop, contextlib.ExitStack() as opened:
        launches = {name: count for name, count in world.gathered([launch_identity(), restart_count()]) if name}
        if world.any(stopped_by_this_launch(world.from_first(read_status(plan.run.dir / plan.run.name)) or {})):
            say("a signal has stopped this launch, and it has started its processes again: they end without training")
            world.leave()
            return False
        with telling_too_little():
            trainer, data, saved = _prepare(plan, resolved, world, stop, launches, opened)
        return _run(trainer, data, saved)


def _prepare(
    plan: Plan,
    resolved: str,
    world: World,
    stop: StopRequest,
    launches: dict[str, int],
    opened: contextlib.ExitStack,
) -> tuple[Trainer, Domains, checkpoint.Checkpoint | None]:
    """Everything before the first step; the first process alone makes and holds the run's folder.

    What is to be closed at the end, whichever it is, is left in `opened`.
    """
    world.agree("the configuration", hashlib.sha256(resolved.encode()).hexdigest())
    world.agree("the versions", json.dumps(versions(), sort_keys=True))
    with world.together():
        set_up(plan, world.device, zero_stage(plan.backend, os.environ) is not None)
        data = open_data(plan.data)
        labels = check_data(plan, data)
        check_decoder(plan.data, data, world.device)
        order = choose_order(plan, data)
    world.agree("the data", data.digest())
    with world.together():
        folder = RunFolder(plan.run.dir / plan.run.name, world.first, launches)
    try:
        check_shared(world, folder.path)
        saved = _found(plan, resolved, world, folder, data, order)
        with world.together():
            recipe = build_recipe(
                plan.recipe, plan.batch.size, DTYPES[plan.precision], plan.run.seed, labels, data.names
            )
            refuse_mixed(data, {stage.resolution for stage in recipe.stages}, plan.data.max_corrupt, saved is not None)
            initial = open_initial(plan, data.names) if saved is None else None
        asked = Asked(plan, recipe, world, folder.path, 0 if saved is None else saved.nimg)
        check_memory(asked, labels, data.names)
        backend = _backend(plan, recipe, world)
        if initial is not None:
            start_from(initial, backend)
        corrupt = CorruptRows(plan.data.max_corrupt)
        gallery = open_gallery(plan, recipe, data, world, corrupt)
        tracker = exporter = None
        with world.together():
            if world.first:
                exporter = open_exporter(plan, opened)
                tracker = start_tracking(plan, folder, saved, folder.write_config(resolved), data, world.size)
    except BaseException:
        folder.discard_if_new()
        raise
    run_id = tracker.run_id if tracker is not None else ""
    state = describe_run(plan, data, run_id, world) | {"order": order}
    trainer = Trainer(plan, folder, recipe, backend, gallery, tracker, corrupt, state, stop, exporter)
    if exporter is not None:
        exporter.follow(trainer.current, {"recipe": plan.recipe.name, "version": __version__, "mlflow_run_id": run_id})
    return trainer, data, saved


def _backend(plan: Plan, recipe: Recipe, world: World) -> Backend:
    stage = zero_stage(plan.backend, os.environ)
    engines = None if stage is None else Engines(list(recipe.players), stage, world)
    return Backend(recipe, world.device, plan.run.seed, plan.performance, world, engines, levers=plan.levers)


def _found(
    plan: Plan, resolved: str, world: World, folder: RunFolder, data: Domains, order: dict[str, Any]
) -> checkpoint.Checkpoint | None:
    """The checkpoint from which all processes go on, as the first one finds it."""
    saved = None
    with world.together():
        if world.first:
            saved = find_checkpoint(plan, resolved, folder, data, order)
    name = world.from_first(None if saved is None else saved.folder.name)
    with world.together():
        if name is not None and not world.first:
            saved = checkpoint.read(folder.checkpoints / name)
    return saved


def _run(trainer: Trainer, data: Domains, saved: checkpoint.Checkpoint | None) -> bool:
    """Run the trainer, and say in `status.json` and in MLflow how it ended."""
    try:
        with telling_losses(trainer.world):
            if saved is not None:
                trainer.restore(saved)
                say(f"going on from {saved.folder}, {saved.nimg / 1000:.1f} kimg")
            _write_status(trainer, "running")
            with _watch(trainer), open_loader(trainer, data) as loader:
                finished = trainer.run(loader)
            _record_end(trainer, finished)
    except BaseException as error:
        told = out_of_memory(trainer, error) if is_out_of_memory(error) else error
        # What went wrong first is what is told, also where the disk is so full that this cannot be written.
        with contextlib.suppress(Failure):
            _write_status(trainer, "failed", str(told) or type(told).__name__)
        with contextlib.suppress(Exception):
            if trainer.tracker is not None:
                trainer.tracker.finish("FAILED", register_best(trainer, trainer.tracker, error))
        console.quiet = False  # whoever fails says so
        if told is not error:
            with contextlib.suppress(OSError):
                show_known(trainer)
            raise told from error
        raise
    if trainer.world.first:
        report_end(trainer, finished)
    trainer.world.leave()
    return finished


def _watch(trainer: Trainer) -> Watch:
    backend = trainer.plan.backend
    return Watch(
        trainer.world, trainer.folder, trainer.stop, lambda: trainer.progress.nimg, backend.hang_after, backend.grace
    )


def _write_status(trainer: Trainer, state: State, message: str = "") -> None:
    if trainer.world.first:
        trainer.folder.write_status(state, trainer.progress.nimg, message)


def _record_end(trainer: Trainer, finished: bool) -> None:
    """Log the model, let MLflow know, and wait for what it lacks."""
    if trainer.tracker is not None:
        if finished:
            log_model(trainer, trainer.tracker)
        wait = TRACKING_WAIT if trainer.world.alone else min(TRACKING_WAIT, trainer.plan.backend.timeout / 2)
        trainer.tracker.finish("FINISHED" if finished else "KILLED", wait if finished else SHORT_WAIT)
    _write_status(trainer, "finished" if finished else "preempted")


def open_loader(trainer: Trainer, data: Domains) -> Loader:
    """Start to decode for a run."""
    plan, last = trainer.plan, trainer.recipe.stages[-1]
    own = share(last.batch, last.group, trainer.world.rank, trainer.world.size)
    return Loader(
        data,
        plan.data,
        plan.run.seed,
        largest_batch(trainer.recipe.stages, trainer.total, trainer.world.rank, trainer.world.size),
        share=trainer.world.neighbours,
        device=trainer.backend.device,
        corrupt=trainer.corrupt,
        lanes=lanes_of(plan),
        typical=Request(range(max(1, len(own))), last.resolution),
        stopped=lambda: trainer.stop.agreed,
    )


def check_data(plan: Plan, data: Domains) -> LabelDistribution | None:
    """Make sure that the data can serve the recipe; say what is worth knowing.

    Raises:
        UsageError: If the recipe trains on something else than these domains, the images are too small, or labels are
            asked for and there are none.
    """
    _check_kind(plan, data)
    data.check_resolution(plan.recipe.resolution)
    sizes = [plan.batch.size] if isinstance(plan.batch.size, int) else plan.batch.size.values()
    for source in data.sources:
        found, images = source.shards.resolution, f"images{data.of(source)}"
        if found > plan.recipe.resolution:
            say(f"{images} of {found} pixels are reduced to {plan.recipe.resolution} by 2x2 box averages")
        if max(sizes) > len(source.shards):
            say(
                f"a batch of {max(sizes)} is larger than the data set of {len(source.shards)} {images}: some appear in "
                "it twice"
            )
    if not plan.recipe.labels:
        return None
    counts = data.sources[0].shards.label_counts
    if counts is None:
        raise UsageError(
            f"recipe.labels is true, but {data.location} has no labels; prepare it with --labels, or set it to false"
        )
    return LabelDistribution(tuple(int(count) for count in counts))


def _check_kind(plan: Plan, data: Domains) -> None:
    """Make sure that there are two domains for a recipe that translates, and plain images for another one."""
    if not plan.recipe.translates and not data.is_plain:
        raise UsageError(
            f"recipe {plan.recipe.name} trains on plain images, but the data have the domains "
            f"{', '.join(data.names)}: name one shard set of plain images, as data.shards"
        )
    if plan.recipe.translates and len(data.names) != 2:
        found = "plain images" if data.is_plain else f"the domains {', '.join(data.names)}"
        raise UsageError(
            f"recipe {plan.recipe.name} translates between two domains, but the data have {found}: name a shard set "
            "for each, as data.domains={a: SHARDS, b: SHARDS}, or one of pairs, as data.shards"
        )


def lanes_of(plan: Plan) -> int:
    """Into how many lanes the order of streamed shards is cut: by the batch of the full resolution, the longest."""
    return resolve_lanes(plan.data.stream.lanes, at_resolution(plan.batch.size, plan.recipe.resolution))


def choose_order(plan: Plan, data: Domains) -> dict[str, Any]:
    """The order of the samples, as a checkpoint records it; said, since a resume depends on it.

    Raises:
        UsageError: If the cache of a streamed source is too small for it.
    """
    lanes = lanes_of(plan)
    require_room([source.shards.cache for source in data.sources if source.shards.cache is not None], lanes)
    orders = [describe_order(order_of(source.shards, plan.run.seed, lanes)) for source in data.sources]
    for source, one in zip(data.sources, orders, strict=True):
        say(f"sample order{data.of(source)}: {_order_in_words(one)}")
    alike = all(one == orders[0] for one in orders)
    return orders[0] if alike else {"kind": "by source", "sources": orders}


def _order_in_words(order: dict[str, Any]) -> str:
    if order["kind"] == "lanes":
        return f"{order['lanes']} lanes of streamed shards"
    return " and ".join(map(_order_in_words, order["sources"])) if "sources" in order else "by offset"


def _refuse_other_order(saved: checkpoint.Checkpoint, order: dict[str, Any]) -> None:
    before = saved.state.get("order", {"kind": "offset"})  # the only one, when checkpoints did not name it yet
    if before != order:
        raise UsageError(
            f"{saved.folder} was trained with the sample order '{_order_in_words(before)}', and now it is "
            f"'{_order_in_words(order)}': the same images would come in another order; give data.shards and "
            "data.stream.lanes as they were (a URL is streamed, a folder is read by offset), or start a new run under "
            "another run.name"
        )


def find_checkpoint(
    plan: Plan, resolved: str, folder: RunFolder, data: Domains, order: dict[str, Any]
) -> checkpoint.Checkpoint | None:
    """The checkpoint from which the run goes on, as `run.resume` says.

    Raises:
        UsageError: If there is one and may not be, or there is none and must be, or the configuration or the data
            differ in what may not change.
    """
    saved = checkpoint.latest(folder.checkpoints)
    if saved is None:
        if plan.run.resume == "required":
            raise UsageError(f"run.resume is 'required', but {folder.checkpoints} has no checkpoint; use 'auto'")
        folder.begin_again(resolved)
        return None
    if plan.run.resume == "never":
        raise UsageError(
            f"run.resume is 'never', but {folder.path} has the checkpoint {saved.folder.name}; "
            f"choose another run.name, or use 'auto' to go on from it"
        )
    refuse_changes(_with_new_keys(saved.state["configuration"], plan), plan.model_dump(mode="json"))
    if saved.state["data"] != data.digest():
        keys = "data.shards" if plan.data.domains is None else "data.domains"
        raise UsageError(
            f"the images in {data.location} are not those that {saved.folder} was trained on (the manifests "
            f"differ); point {keys} at the same data, or start a new run under another run.name"
        )
    _refuse_other_order(saved, order)
    return saved


def _with_new_keys(configuration: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """A checkpoint's configuration with the defaults of keys that its version did not know yet."""
    try:
        return type(plan).model_validate(configuration).model_dump(mode="json")
    except ValidationError:
        return configuration


def open_exporter(plan: Plan, opened: contextlib.ExitStack) -> Exporter | None:
    """Listen for Prometheus, where a port is set."""
    tracking = plan.tracking
    if tracking.metrics_port is None:
        return None
    return opened.enter_context(Exporter(tracking.metrics_address, tracking.metrics_port, plan.run.name))


def start_tracking(
    plan: Plan, folder: RunFolder, saved: checkpoint.Checkpoint | None, config: Path, data: Domains, processes: int
) -> Tracker:
    """Open the MLflow run, or go on with it."""
    shards = [source.shards for source in data.sources]
    seen = TrainingData(data.location, data.digest(), sum(map(len, shards)), max(one.resolution for one in shards))
    recipe = plan.recipe
    note = description(recipe.name, recipe.resolution, plan.run.total_kimg, processes, folder.path, seen)
    return Tracker.start(
        plan.tracking,
        run_folder=folder.path,
        run_dir=plan.run.dir,
        run_name=plan.run.name,
        run_id=saved.state["mlflow_run_id"] if saved else None,
        parameters=plan.model_dump(mode="json"),
        tags={"recipe": recipe.name, "processes": str(processes), "run_folder": str(folder.path), NOTE: note},
        config_file=config,
        data=seen,
    )


def versions() -> dict[str, str | None]:
    """Of what a run's numbers depend on."""
    # Our own from the package: it need not be installed to be run.
    return (
        {"hires-gan": __version__}
        | {name: version(name) for name in ("torch", "torchvision", "accelerate")}
        | {"python": platform.python_version(), "cuda": torch.version.cuda}
    )


def describe_run(plan: Plan, data: Domains, run_id: str, world: World) -> dict[str, Any]:
    """What every checkpoint says of the run besides its progress: no password, since checkpoints are passed on."""
    configuration = plan.model_dump(mode="json")
    if plan.tracking.uri is not None:
        configuration["tracking"]["uri"] = redact(plan.tracking.uri)
    canonical = json.dumps(configuration, sort_keys=True, separators=(",", ":"))
    return {
        "configuration": configuration,
        "configuration_sha256": hashlib.sha256(canonical.encode()).hexdigest(),
        "data": data.digest(),
        "folders": [str(source.shards.folder) for source in data.sources],
        "world_size": world.size,
        "mlflow_run_id": run_id,
        "versions": versions(),
    }


def report_end(trainer: Trainer, finished: bool) -> None:
    """Say where everything is."""
    folder, nimg = trainer.folder, trainer.progress.nimg
    say(f"{'finished' if finished else 'stopped'} at {nimg / 1000:.1f} kimg")
    saved = checkpoint.latest(folder.checkpoints)
    grids = sorted(folder.samples.glob("*.png"))
    for grid in grids:
        if grid.name[:12] == grids[-1].name[:12]:  # a translation has one for each direction
            say(f"  grid:       {grid}")
    if saved is not None:
        say(f"  checkpoint: {saved.folder}")
    if trainer.tracker is not None:
        say(f"  MLflow:     {trainer.tracker.how_to_look()}")
    if not finished:
        say("the same command again goes on from here")
