"""The page and the picture: what they show, and that nothing of a run becomes markup."""

from __future__ import annotations

import base64
import io
import math
from html.parser import HTMLParser
from pathlib import Path

import pytest
from comparison_store import ALIKE, TRAINED, RecordedRuns, plain, sqlite
from PIL import Image

from hires_gan.errors import UsageError
from hires_gan.tracking.comparison.command import compare

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> $\\frac{1}{$ 雪"


class Page(HTMLParser):
    """Elements, attributes and text of a page; its elements have to be closed in turn."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.source = file.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)

    @property
    def images(self) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == "img"]

    def grid(self, name: str) -> Image.Image:
        (source,) = [one["src"] for one in self.images if (one["alt"] or "").startswith(f"Samples of {name} at ")]
        return Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).convert("RGB")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RecordedRuns:
    return RecordedRuns(sqlite(tmp_path_factory.mktemp("store")))


def compared(store: RecordedRuns, out: Path, *runs: str) -> tuple[Page, list[str]]:
    lines = list(compare(runs, out, store.uri, None, set()))
    assert lines[-2:] == [str(out / "comparison.html"), str(out / "comparison.png")]
    page = Page(out / "comparison.html")
    assert page.open == []
    with Image.open(out / "comparison.png") as picture:
        assert picture.width > 1000 and picture.height > 50
        picture.load()
    return page, lines


def words(line: str) -> str:
    return " ".join(line.split())


def test_what_differs_and_what_came_of_it(store, tmp_path):
    better = {**TRAINED, "evaluation/swd": {1000: 30.0, 2000: 20.0}, "kimg": {2000: 2.0}}
    first = store.add(
        "slow", TRAINED, {"rate": "0.1", "depth": "3"}, {"gpu.count": "0"}, {2000: plain("red"), 3000: plain("lime")}
    )
    second = store.add(
        "fast", better, {"rate": "0.5", "depth": "3", "new": ""}, {"gpu.count": "0"}, {2000: plain("blue")}
    )
    page, lines = compared(store, tmp_path, first, second)
    assert "2 settings differ" in lines
    assert words(lines[0]) == "run status kimg swd last swd best (at kimg) images/s GPU hours"
    assert words(lines[1]) == "slow finished 3 60 40 (2) 50 0 (CPU)"
    assert words(lines[2]) == "fast finished 2 20 20 (2) 50 0 (CPU)"
    for text in ("rate", "0.1", "0.5", "new", "not set", '""', "Samples, at 2 kimg", "loss/generator", "at 2 kimg"):
        assert text in page.text or any(text in (image["alt"] or "") for image in page.images), text
    assert "depth" not in page.text
    for name, wanted in (("slow", (255, 0, 0)), ("fast", (0, 0, 255))):
        pixel = page.grid(name).getpixel((10, 10))
        assert max(abs(one - other) for one, other in zip(pixel, wanted, strict=True)) < 12, "the same place of each"


def test_what_ended_as_no_number_shows_it_everywhere(store, tmp_path):
    points = {**TRAINED, "evaluation/fid": {1000: 7.5, 3000: math.nan}, "evaluate/fid": {1000: 6.25}}
    broken = store.add("broken", {**points, "evaluation/kid": {3000: math.nan}})
    page, lines = compared(store, tmp_path, broken)
    heads, cells = (lines[line].split("  ") for line in (0, 1))
    shown = dict(zip(*([cell.strip() for cell in row if cell.strip()] for row in (heads, cells)), strict=True))
    assert (shown["fid last"], shown["fid best (at kimg)"]) == ("nan", "7.5 (1)")
    assert (shown["kid last"], shown["kid best (at kimg)"]) == ("nan", "-")
    assert {"nan", "6.25 (1)"} <= set(page.texts) and "has its kimg behind it" in page.text
    (alt,) = [image["alt"] for image in page.images if (image["alt"] or "").startswith("evaluation/fid over kimg")]
    assert alt is not None and alt.endswith("Last values: broken 7.5 at 1 kimg")


def test_what_was_not_measured_alike_is_not_set_side_by_side(store, tmp_path):
    digest, network = "d" * 64, {"features.name": "inception", "features.checksum": "c" * 64}
    few, many = ({"fakes": fakes, "data.digest": digest, **network} for fakes in ("2048", "50000"))
    points = {**TRAINED, "evaluation/fid": {1000: 9.0, 2000: 8.0}, "evaluate/fid": {2000: 7.5}}
    first = store.add("few", points, protocols={**ALIKE, "evaluation/fid": {0: few}}, data="a" * 64)
    second = store.add("many", points, protocols={**ALIKE, "evaluation/fid": {0: many}}, data="b" * 64)
    page, lines = compared(store, tmp_path, first, second)
    assert "fid was not measured alike (fakes 2,048 and 50,000): no best is marked" in lines
    assert "few, many do not say how evaluate/fid was measured: no best is marked" in lines
    assert "1 setting differs" in lines
    assert "shards (aaaaaaaaaaaa)" in page.text and "shards (bbbbbbbbbbbb)" in page.text
    assert "How they were measured" in page.text
    assert "fid: data dddddddddddd; features of inception cccccccc." in page.text
    assert "fid: fakes" in page.text and "2,048" in page.text and "swd: 16 fakes." in page.text
    assert "Not measured alike: fakes 2,048 and 50,000." in page.text
    assert "evaluate/fid: one point in a run, so no curve; it stands in the summary." in page.text
    assert not any("evaluate/fid over kimg" in (image["alt"] or "") for image in page.images)
    marked = [attributes for tag, attributes in page.elements if tag == "td" and attributes.get("class") == "best"]
    assert len(marked) == 2, "swd alone, in which they are equal"


def test_a_tag_that_cannot_be_read_is_unknown(store, tmp_path):
    broken = [
        "",
        "[",
        "7",
        "null",
        "[7]",
        '[{"nimg": "0"}]',
        '[{"nimg": 0, "fakes": 3}]',
        "[" * 7000,
        '[{"fakes": "3"}]',
    ]
    names = [f"broken-{number}" for number in range(len(broken))]
    for name, text in zip(names, broken, strict=True):
        store.add(name, TRAINED, tags={"protocol.evaluation/swd": text}, protocols={})
    page, lines = compared(store, tmp_path, *names)
    assert f"{', '.join(names[:3])} and 6 more do not say how swd was measured: no best is marked" in lines
    assert "swd: broken-0, broken-1, broken-2 and 6 more: not said." in page.text


def test_nothing_of_a_run_becomes_markup(store, tmp_path):
    run_id = store.add(
        HOSTILE, {**TRAINED, "loss/a_b: c - d": {1000: 1.0}}, {"note": HOSTILE, "k": "</td>"}, {"host": HOSTILE}
    )
    page, _ = compared(store, tmp_path, run_id, store.add("plain", TRAINED, {"note": "x"}))
    assert page.text.count(HOSTILE) >= 3, "it stands there as text"
    assert not [tag for tag, _ in page.elements if tag in {"script", "iframe", "object", "link", "a", "form"}]
    names = {name for _, attributes in page.elements for name in attributes}
    assert not [name for name in names if name.startswith("on") or name in {"href", "srcset", "action"}]
    assert page.images and all(image["src"].startswith("data:image/") and image["alt"] for image in page.images)
    assert "default-src 'none'" in page.source


def test_the_page_needs_nothing_else_and_reads_aloud(store, tmp_path):
    page, _ = compared(store, tmp_path, store.add("alone", grids={1000: plain("red")}))
    assert "http://" not in page.source and "https://" not in page.source and "url(" not in page.source
    assert dict(page.elements)["html"] == {"lang": "en"}
    heads = [attributes for tag, attributes in page.elements if tag == "th"]
    assert heads and all(head.get("scope") in {"col", "row", "colgroup"} for head in heads)
    alt = next(image["alt"] for image in page.images if "loss/generator" in image["alt"])
    assert alt == "loss/generator over kimg. Last values: alone 3 at 3 kimg"
    assert "Settings that differ" not in page.text, "there is nothing to differ from"


def test_what_is_missing_has_a_note_in_its_place(store, tmp_path):
    store.add("empty", {})
    store.add("whole", grids={1000: plain("red")})
    store.add("damaged", grids={1000: b"\x89PNG\r\n but no more"})
    lost = store.add("lost", grids={1000: plain("red")})
    (file,) = (store.artifacts(lost) / "images").iterdir()
    page, lines = compared(store, tmp_path, "empty", "whole", "damaged")
    assert "empty: no metrics were logged" in lines
    assert "empty: no grids logged" in lines
    assert "no grids logged." in page.text
    start = "damaged: the grid of 1 kimg cannot be read: images/samples~grid+step+1000+"
    (note,) = [line for line in lines if line.startswith(start)]
    assert note.endswith(".png is damaged, or no PNG file"), "by the name in the store"
    file.unlink()
    _, lines = compared(store, tmp_path, lost, "whole")
    assert "lost: no grids logged" in lines
    page, lines = compared(store, tmp_path, "empty")
    assert "No run has logged metrics that could be drawn." in page.text


def test_a_grid_that_vanishes_while_it_is_read(store, tmp_path, monkeypatch):
    run_id = store.add("vanishing", grids={1000: plain("red")})

    download = type(store.client).download_artifacts

    def vanish(client, run, path, folder):
        (store.artifacts(run) / path).unlink()
        return download(client, run, path, folder)

    monkeypatch.setattr(type(store.client), "download_artifacts", vanish)
    _, lines = compared(store, tmp_path, run_id)
    assert any(line.startswith("vanishing: the grid of 1 kimg cannot be read: ") for line in lines)


def test_a_run_folder_has_the_grids_that_the_store_lacks(store, tmp_path):
    run_id = store.add("local", grids={1000: b"damaged"})
    folder = tmp_path / "local"
    for name in ("tracking", "samples"):
        (folder / name).mkdir(parents=True)
    (folder / "tracking" / "run.json").write_text(f'{{"run_id": "{run_id}", "uri": "{store.uri}"}}')
    plain("lime").save(folder / "samples" / "000000001000.png")
    page, _ = compared(store, tmp_path, str(folder))
    assert page.grid("local").getpixel((5, 5))[1] > 240, "in place of the damaged one"
    for file in (store.artifacts(run_id) / "images").iterdir():
        file.unlink()
    page, _ = compared(store, tmp_path, str(folder))
    assert page.grid("local").getpixel((5, 5))[1] > 240, "where none was logged"


def test_grids_of_different_places_and_of_both_directions(store, tmp_path):
    first, second = store.add("one"), store.add("two")
    for run_id, places in ((first, (1000, 3000)), (second, (1500, 2900))):
        for nimg in places:
            store.add_grid(run_id, nimg, plain("red"), "samples~a_to_b")
    store.add_grid(first, 1000, plain("blue"), "samples~b_to_a")
    page, _ = compared(store, tmp_path, first, second)
    assert "a to b, at different places, the nearest that each run has" in page.text
    assert "3 kimg" in page.text and "2.9 kimg" in page.text
    assert "b to a, at 1 kimg" in page.text and "no such grid in this run." in page.text


def test_a_name_cannot_steer_the_terminal(store, tmp_path):
    _, lines = compared(store, tmp_path, store.add("red\x1b[31m\nand more"))
    assert all(line.isprintable() for line in lines)
    assert lines[1].startswith("red [31m and more")


def test_equal_configurations_are_said_to_be_equal(store, tmp_path):
    page, lines = compared(store, tmp_path, *(store.add(name, TRAINED, {"a": "1"}) for name in ("x", "y")))
    assert "0 settings differ" in lines
    assert "None: the configurations are equal." in page.text


def test_a_dozen_runs_fit(store, tmp_path):
    ids = [store.add(f"of-many-{number}", grids={1000: plain("red")}) for number in range(12)]
    page, _ = compared(store, tmp_path, *ids)
    assert len([image for image in page.images if image["alt"].startswith("Samples of of-many-")]) == 12


def test_the_files_are_replaced_and_a_file_is_no_folder(store, tmp_path):
    run_id = store.add("again")
    out = tmp_path / "new" / "folder"
    compared(store, out, run_id)
    compared(store, out, run_id)
    assert sorted(file.name for file in out.iterdir()) == ["comparison.html", "comparison.png"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="--out is .*file, which is a file; give a folder"):
        list(compare([run_id], tmp_path / "file", store.uri, None, set()))
