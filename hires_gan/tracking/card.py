"""What MLflow shows of a model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelCard:
    """What MLflow shows of a model; plain values, so that it fits into a line of the journal.

    Attributes:
        recipe: the recipe's name, "progressive" for example.
        resolution: the side of its images in pixels.
        format_version: the version of the checkpoint format.
        nimg: how many images it was trained with.
        register_as: the name under which a version is registered; None registers nothing.
        translates: whether it makes images of images.
        is_best: whether it has the best value of its run.
        watched: the metric of the run that says so, "evaluation/swd" for example; empty for none.
        higher_is_better: which way is better.
        compared: names the way in which it is measured (data, number of images, feature network): only where two
            versions agree in it are their values compared; empty where that is not known.
        config: the file of the resolved configuration, which is logged beside the checkpoint; empty for none.
        value: what was watched, of the best; None for another, and where the store shall say it.
    """

    recipe: str
    resolution: int
    format_version: int
    nimg: int
    register_as: str | None = None
    translates: bool = False
    is_best: bool = False
    watched: str = ""
    higher_is_better: bool = False
    compared: str = ""
    config: str = ""
    value: float | None = None
