"""MLflow's own pages in a real browser: two small runs, as people find them there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import browser
import pytest
from mlflow import MlflowClient
from mlflow_pages import Pages
from served_runs import EXPERIMENT, NAME, ServedRuns

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(browser.missing()), reason=browser.missing())]


@pytest.fixture(scope="module")
def client(served: ServedRuns) -> Any:
    return MlflowClient(served.uri, served.uri)


@pytest.fixture(scope="module")
def pages(served: ServedRuns, client: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    with browser.open_browser(tmp_path_factory.mktemp("browser"), 1500, 1400) as window:
        opened = Pages(window, served.uri, client.get_experiment_by_name(EXPERIMENT).experiment_id)
        opened.calm()
        yield opened


def test_the_list_names_runs_data_and_models(pages: Pages) -> None:
    pages.runs()
    pages.browser.wait_for("slow-rate", "fast-rate", "2 matching runs", NAME)
    pages.browser.wait_until("return document.body.innerText.split('shards (').length == 3")  # with the set's digest


def test_the_charts_of_both_runs_have_a_section_for_each_kind(pages: Pages) -> None:
    pages.charts()
    pages.browser.wait_for("checkpoint", "System metrics")
    expected = ["checkpoint", "data", "evaluation", "evaluation/swd", "gradients", "loss", "memory", "samples"]
    assert pages.sections()[:8] == expected
    assert set(pages.sections()[8:]) >= {"schedule", "speed", "statistics", "Model metrics", "System metrics"}
    pages.fold("evaluation")
    pages.browser.wait_for("slow-rate (evaluation/swd)", "fast-rate (evaluation/swd)")


def test_the_slider_shows_the_grids(pages: Pages) -> None:
    pages.charts()
    pages.browser.wait_for("samples", "System metrics")
    pages.fold("samples")
    pages.hide_parameters("samples/grid")
    shown = pages.browser.wait_until(
        "const seen = [...document.querySelectorAll('[data-testid=experiment-view-compare-runs-card] img')];"
        "const widths = seen.map(image => image.naturalWidth);"
        "return widths.length == 2 && widths.every(width => width > 0) && widths"
    )
    assert shown == [64, 64], "16 images of 16x16, 4 a side"
    pages.browser.wait_until("return Boolean(document.querySelector('[role=slider][aria-valuemax=\"960\"]'))")


def test_the_page_of_a_run_says_what_it_is(pages: Pages, served: ServedRuns) -> None:
    pages.run(served.run_id("slow-rate"))
    pages.browser.wait_for("Description", "progressive, 16x16, 0.96 kimg of 24 images", "Parameters (")
    pages.browser.wait_for(f"hires-gan train {served.folder('slow-rate')}/config.yaml", "10k on an axis are 10 kimg")
    pages.browser.wait_for("git.commit", "version.torch", "gpu.count", "processes")


def test_the_comparison_begins_with_what_differs(pages: Pages, served: ServedRuns) -> None:
    pages.comparison([served.run_id("slow-rate"), served.run_id("fast-rate")])
    pages.browser.wait_for("Comparing 2 Runs", "Show diff only", "recipe.generator_optimizer.learning_rate")
    shown = pages.browser.wait_for("Parameters:", "Clear All")
    chosen = shown[shown.index("Parameters:") : shown.index("Clear All")]
    assert "recipe.generator_optimizer.learning_rate" in chosen and "batch.size" not in chosen
    assert "system/" not in chosen


def test_the_registry_shows_versions_values_and_the_best(pages: Pages, client: Any) -> None:
    pages.registered(NAME)
    pages.browser.wait_for("Aliases", "Version 1", "evaluation/swd", "best", "progressive at 16x16")
