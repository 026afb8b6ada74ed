"""What is compared of a run, read from its store."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hires_gan.tracking.comparison.histories import Curve, Wanted, read_histories
from hires_gan.tracking.comparison.locate import Found
from hires_gan.tracking.names import JUDGES, is_part
from hires_gan.tracking.protocols import History, histories_of
from hires_gan.tracking.recorded import read_recorded
from hires_gan.tracking.store import redact

SECONDS_PER_KIMG = "speed/seconds_per_kimg"
IMAGES_PER_SECOND = "speed/images_per_second"
DATA_WAIT = "speed/data_wait"
GPUS = "speed/gpus"
"""How many GPUs train: their number may change where a run goes on."""
MOST_CURVES = 60
_NUMBERS = (SECONDS_PER_KIMG, IMAGES_PER_SECOND, DATA_WAIT, GPUS)
_NOT_DRAWN = ("system/", "schedule/", "memory/", "data/", "gradients/", "checkpoint/", "ranks/")
_CHANGED = "changed."
"""Tags with the present value of a parameter that was changed when the run went on."""


@dataclass(frozen=True)
class Run:
    """A run, as far as it is compared.

    Attributes:
        name: Its name; where several have the same one, with the beginning of its id.
        run_id: MLflow's id.
        place: The store, without secrets.
        experiment: The experiment's name.
        status: "running", "finished", "failed" or "killed".
        parameters: The flattened configuration, as it is now.
        tags: Of the code and the machine.
        protocols: How its metrics were measured, by the name in the store; without those of which nothing says it.
        data: What it was trained on: names, by their digests.
        curves: By metric: those that are drawn, and those that speed and cost are computed of.
        nimg: Images shown to the discriminator; 0 where nothing says it.
        undrawn: How many more metrics there are than are drawn.
        client: The store's MlflowClient, for the run's images.
        folder: The run's folder, if there is one on this machine.
    """

    name: str
    run_id: str
    place: str
    experiment: str
    status: str
    parameters: Mapping[str, str]
    tags: Mapping[str, str]
    protocols: Mapping[str, History]
    data: Mapping[str, str]
    curves: Mapping[str, Curve]
    nimg: int
    undrawn: int
    client: Any
    folder: Path | None

    @property
    def drawn(self) -> list[str]:
        """The metrics that have a plot."""
        return [key for key in self.curves if is_drawn(key)]


def is_drawn(key: str) -> bool:
    """Whether a metric has a plot: not the machine's, the schedule's, or the levels and deviations of a metric."""
    if key in (SECONDS_PER_KIMG, GPUS, "kimg", "not_finite") or key.startswith(_NOT_DRAWN):
        return False
    return not is_part(key)


def read_runs(found: Sequence[Found]) -> list[Run]:
    """Read the runs, each store with as few requests as it allows.

    Raises:
        Failure: A store does not answer.
    """
    by_store: dict[str, list[Found]] = defaultdict(list)
    for one in found:
        by_store[one.uri].append(one)
    keys = {one.run.info.run_id: _chosen(one.run.data.metrics) for one in found}
    curves = {
        (uri, *name): curve
        for uri, members in by_store.items()
        for name, curve in read_histories(members[0].client, uri, _wanted(members, keys), _drawn_alone(keys)).items()
    }
    names = Counter(one.run.info.run_name for one in found)
    return [_run(one, keys[one.run.info.run_id], curves, names[one.run.info.run_name] > 1) for one in found]


def _chosen(metrics: Mapping[str, float]) -> list[str]:
    """The metrics whose points are read."""
    drawn = sorted(filter(is_drawn, metrics), key=importance)
    return [*drawn[:MOST_CURVES], *(key for key in _NUMBERS if key in metrics and key not in drawn)]


def importance(key: str) -> tuple[int, bool, str]:
    """What to sort metrics by: those that judge come first, then what is minimised, then the rest."""
    order = (*JUDGES, "loss/", "speed/", "statistics/")
    place = next((place for place, prefix in enumerate(order) if key.startswith(prefix)), len(order))
    return place, key != "loss/generator", key


def _wanted(members: Sequence[Found], keys: Mapping[str, Sequence[str]]) -> Wanted:
    wanted: dict[str, list[str]] = defaultdict(list)
    for one in members:
        for key in keys[one.run.info.run_id]:
            wanted[key].append(one.run.info.run_id)
    return wanted


def _drawn_alone(keys: Mapping[str, Sequence[str]]) -> set[str]:
    """The metrics of which neither a best value nor the cost is computed."""
    computed = (*JUDGES, SECONDS_PER_KIMG, GPUS)
    return {key for chosen in keys.values() for key in chosen if not key.startswith(computed)}


def _run(one: Found, keys: Sequence[str], curves: Mapping[tuple[str, str, str], Curve], ambiguous: bool) -> Run:
    info, data = one.run.info, one.run.data
    own = {key: curves[one.uri, info.run_id, key] for key in keys if (one.uri, info.run_id, key) in curves}
    name = info.run_name or info.run_id[:8]
    return Run(
        name=f"{name} ({info.run_id[:8]})" if ambiguous else name,
        run_id=info.run_id,
        place=redact(one.uri),
        experiment=one.client.get_experiment(info.experiment_id).name,
        status=info.status.lower(),
        parameters=data.params | _changed(data.tags),
        tags={key: value for key, value in data.tags.items() if not key.startswith(_CHANGED)},
        protocols=histories_of(data.tags),
        data=_data(one.run),
        curves=own,
        nimg=_shown(data.metrics, own),
        undrawn=max(0, sum(map(is_drawn, data.metrics)) - MOST_CURVES),
        client=one.client,
        folder=one.folder or _folder_here(info.run_id, data.tags),
    )


def _changed(tags: Mapping[str, str]) -> dict[str, str]:
    return {key.removeprefix(_CHANGED): value for key, value in tags.items() if key.startswith(_CHANGED)}


def _data(run: Any) -> dict[str, str]:
    inputs = run.inputs.dataset_inputs if run.inputs else []
    return {one.dataset.digest: one.dataset.name for one in inputs}


def _shown(metrics: Mapping[str, float], curves: Mapping[str, Curve]) -> int:
    """Images shown, as the run logs it, else the last step of what is drawn."""
    if "kimg" in metrics:
        return round(metrics["kimg"] * 1000)
    return max((int(curve.steps[-1]) for curve in curves.values() if len(curve.steps)), default=0)


def _folder_here(run_id: str, tags: Mapping[str, str]) -> Path | None:
    """The folder that the run names, if this machine has it, and it is this run's and not another machine's path."""
    folder = Path(tags.get("run_folder", ""))
    recorded = read_recorded(folder)
    return folder if folder.is_absolute() and recorded is not None and recorded.run_id == run_id else None
