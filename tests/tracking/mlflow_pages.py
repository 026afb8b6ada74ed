"""MLflow's own pages of an experiment in a browser; run by itself, it takes their pictures for the documentation.

python tests/tracking/mlflow_pages.py http://127.0.0.1:5000 EXPERIMENT docs/images
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from browser import ALL, TAB, Browser, open_browser
from PIL import Image

TRAINING = "workflowType=machine_learning"
_HEADERS = "[data-testid=experiment-view-compare-runs-section-header]"
_NO_ASSISTANT = """
localStorage.setItem('mlflow.assistant.autoOpenedOnFirstLoad_v1', 'true');
localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true');
localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false');
"""
# Charts have their tools over them where there is no mouse, and a button floats in the corner.
_CALM = """
const style = document.createElement('style');
style.textContent = '.modebar, :has(> .assistant-fab-label) {display: none !important}';
document.head.append(style);
"""


@dataclass
class Pages:
    """The pages of one experiment.

    Attributes:
        browser: where they are opened.
        uri: the server.
        experiment: its id.
    """

    browser: Browser
    uri: str
    experiment: str

    def calm(self) -> None:
        """Close what MLflow opens by itself."""
        self.browser.open(self.uri)
        self.browser.wait_for("Experiments")
        self.browser.run(_NO_ASSISTANT)

    def runs(self) -> None:
        """The list of runs."""
        self._open(f"experiments/{self.experiment}/runs?{TRAINING}")

    def charts(self) -> None:
        """The charts of all runs, side by side."""
        self._open(f"experiments/{self.experiment}/runs?{TRAINING}&compareRunsMode=CHART")

    def run(self, run_id: str, tab: str = "") -> None:
        """The page of a run."""
        self._open(f"experiments/{self.experiment}/runs/{run_id}{tab}?{TRAINING}")

    def comparison(self, run_ids: list[str]) -> None:
        """The table of what two runs have in common."""
        runs, experiments = quote(json.dumps(run_ids)), quote(json.dumps([self.experiment]))
        self._open(f"compare-runs?runs={runs}&experiments={experiments}&{TRAINING}")

    def registered(self, name: str) -> None:
        """The page of a registered model."""
        self._open(f"models/{quote(name)}?{TRAINING}")

    def sections(self) -> list[str]:
        """The headings of the charts."""
        return [
            str(name)
            for name in self.browser.run(f"return [...document.querySelectorAll('{_HEADERS}')].map({_HEADING})")
        ]

    def fold(self, *kept: str) -> None:
        """Unfold these sections of charts, and fold all others; the browser remembers it."""
        self.browser.run(
            f"""for (const header of document.querySelectorAll('{_HEADERS}')) {{
                const fold = header.closest('[class*=collapse-header]');
                if ((fold.getAttribute('aria-expanded') == 'true') != arguments[0].includes(({_HEADING})(header)))
                    fold.click();
            }}""",
            list(kept),
        )

    def hide_parameters(self, card: str) -> None:
        """In a card of images, leave out the parameters: all of them stand above the images otherwise."""
        label = "Show run parameters"
        self._press_until(_HAS_TEXT, "Configure", _CLICK_MENU, card)
        self._press_until(_HAS_TEXT, label, _CLICK_TEXT, "Configure")
        self._press_until(_IS_OFF, label, _CLICK_TEXT, label)
        self._press_until("return !document.querySelector('[role=dialog]')", "", _CLICK_TEXT, "Save changes")

    def _press_until(self, answered: str, about: str, press: str, what: str) -> None:
        """Press something, and once more where the page does not answer: while it is drawn anew, a press is lost."""
        deadline, again = time.monotonic() + 90, 0.0
        while not self.browser.run(answered, about):
            assert time.monotonic() < deadline, f"pressing {what} changes nothing: {self.browser.text()[:4000]}"
            if time.monotonic() > again and self.browser.run(press, what):
                again = time.monotonic() + 10
            time.sleep(0.5)

    def _open(self, place: str) -> None:
        self.browser.open("about:blank")  # a change behind the # alone is none to the page
        self.browser.open(f"{self.uri}/#/{place}")


# Menus open at what a finger or a mouse does first.
_CLICK = """
const press = element => {
    for (const kind of ['pointerdown', 'mousedown', 'pointerup', 'mouseup'])
        element.dispatchEvent(new PointerEvent(kind, {bubbles: true, button: 0, pointerType: 'mouse'}));
    element.click();
    return true;
};
"""
_CLICK_MENU = (
    _CLICK
    + """
const cards = [...document.querySelectorAll('[data-testid=experiment-view-compare-runs-card]')];
const card = cards.find(card => card.textContent.includes(arguments[0]));
const menu = card && card.querySelector('[data-testid=experiment-view-compare-runs-card-menu]');
return menu ? press(menu) : false;
"""
)
_FIND_TEXT = """
const all = [...document.querySelectorAll('[role=menuitem], [role=dialog] button, [role=dialog] label')];
const found = all.find(element => element.textContent.trim() == arguments[0]);
"""
_CLICK_TEXT = _CLICK + _FIND_TEXT + "return found ? press(found) : false;"
_HAS_TEXT = _FIND_TEXT + "return Boolean(found);"
_IS_OFF = (
    _FIND_TEXT
    + """
const control = found && document.getElementById(found.htmlFor);
return Boolean(control) && control.getAttribute('aria-checked') == 'false';
"""
)
_SCROLL = f"""
for (const header of document.querySelectorAll('{_HEADERS}'))
    if (header.textContent.trim().startsWith(arguments[0] + '(')) {{ header.scrollIntoView(true); break; }}
"""
_FULL_SCREEN = """
const card = document.querySelector('[data-testid=experiment-view-compare-runs-card]');
card.querySelector('button').click();
"""
_DIFFERENCES = """
const shown = document.querySelector('button[role=switch]');
shown.click();
setTimeout(() => shown.scrollIntoView(true), 2000);
"""
_HEADING = "header => header.textContent.replace(/\\(\\d+\\).*/s, '').trim()"


def take_pictures(pages: Pages, client: Any, out: Path) -> None:
    """The pictures of docs/tracking.md."""
    runs = [run.info.run_id for run in client.search_runs([pages.experiment], order_by=["attributes.start_time ASC"])]
    pages.calm()
    pages.charts()
    pages.browser.wait_for("checkpoint", "evaluation", "loss", "samples")
    time.sleep(3)
    pages.fold("evaluation", "loss")
    pages.browser.run(_SCROLL, "evaluation")
    _picture(pages, out / "mlflow_charts.png")
    pages.fold("samples")
    pages.hide_parameters("samples/grid")
    pages.browser.resize(1000, 760)
    pages.browser.run(_FULL_SCREEN)
    last = pages.browser.wait_until(
        "const slider = document.querySelector('[role=dialog] [role=slider]');"
        "return slider && slider.getAttribute('aria-valuemax')"
    )
    pages.browser.press("[role=dialog] input", f"{ALL}{last}{TAB}")
    _picture(pages, out / "mlflow_samples.png")
    pages.browser.resize(1400, 1150)
    pages.run(runs[0])
    pages.browser.wait_for("Description")
    _picture(pages, out / "mlflow_run.png")
    pages.comparison(runs)
    pages.browser.wait_for("Show diff only")
    pages.browser.run(_DIFFERENCES)
    pages.browser.resize(1400, 860)
    _picture(pages, out / "mlflow_compare.png")
    pages.registered(client.search_model_versions(f"run_id = '{runs[0]}'")[0].name)
    pages.browser.wait_for("Aliases")
    _picture(pages, out / "mlflow_registry.png")


def _picture(pages: Pages, path: Path) -> None:
    """Save what is shown."""
    pages.browser.run(_CALM)
    time.sleep(6)  # charts and images come late
    Image.open(io.BytesIO(pages.browser.picture())).convert("RGB").save(path, optimize=True)


if __name__ == "__main__":
    from mlflow import MlflowClient

    store = MlflowClient(sys.argv[1], sys.argv[1])
    with tempfile.TemporaryDirectory() as scratch, open_browser(Path(scratch), 1400, 1150) as window:
        shown = Pages(window, sys.argv[1], store.get_experiment_by_name(sys.argv[2]).experiment_id)
        take_pictures(shown, store, Path(sys.argv[3]))
