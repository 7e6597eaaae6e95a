"""The report in a real browser: opened from the disk, sorted, filtered, read; hostile names."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from featurecache.stages.cache.featurize import featurize
from featurecache.stages.heads.evaluate import evaluate
from featurecache.stages.heads.train_head import read_epochs, train_head
from featurecache.stages.looking.report import report
from featurecache.stages.studies.tsne import study_tsne
from featurecache.study import figures, pages

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; Debian: apt install chromium"),
]
HOSTILE = {
    "cat": "<img src=x onerror=\"document.title='broken'\">",
    "dog": "</script><script>document.title='broken'</script> \"quotes\" 'and' `ticks` {{ 7 * 7 }}",
    "owl": "\u202eright to left\u202c \u05e9\u05dc\u05d5\u05dd",
    "yak": "long " * 20 + "x" * 400,
}
ODD = "<svg onload=alert(1)>&\"'.png"  # ends the names of all files of the split
SIZES = (400, 1400)


@pytest.fixture(scope="module")
def reported(
    tmp_path_factory: pytest.TempPathFactory,
    write_dataset: Callable[..., Path],
    load_once: None,
    tiny: dict[str, Any],
) -> dict[str, Any]:
    """A report of two runs on a dataset whose classes, files and policy have hostile names."""
    root = tmp_path_factory.mktemp("hostile")
    write_dataset(
        root / "pictures", {f"train/{n}": 10 for n in HOSTILE} | {f"val/{n}": 5 for n in HOSTILE}
    )
    for path in sorted((root / "pictures" / "val").rglob("*.png")):
        path.rename(path.with_name(f"{path.stem}{ODD}"))
    data = root / "data.csv"
    with data.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "split"])
        for path in sorted((root / "pictures").rglob("*.png")):
            split, name = path.parts[-3:-1]
            rows.writerow([path.relative_to(root).as_posix(), HOSTILE[name], split])
    policy = root / "odd.yaml"
    policy.write_text("augmenters:\n  - Fliplr: {p: 0.5}\n")
    view = f"{policy}_1"
    given: dict[str, Any] = {"data": data, "cache": root / "cache"}
    featurize(policy=["none", view], **given, **tiny)
    runs = []
    for seed, phases in enumerate(([("none", 2), (view, 2), ("none", 1)], [("none", 4)])):
        schedule = root / f"<b>schedule {seed}.yaml"
        lines = [f"  - {{views: {name!r}, epochs: {epochs}}}" for name, epochs in phases]
        schedule.write_text(
            "backbone: efficientnet_lite0\nhead: {hidden: [8]}\nbatch_size: 8\n"
            f"optimizer: {{lr: 1.0e-3}}\nseed: {seed}\nphases:\n" + "\n".join(lines) + "\n"
        )
        run = train_head(schedule, runs=root / "runs", device="cpu", **given)
        runs.append(run.run)
    page = report(runs, out=root / "report.html", **given)
    return {"path": page.path, "runs": runs, "given": given, "report": page}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    # Chromium refuses its sandbox to root, as whom CI runs; the page is our own.
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"] if os.getuid() == 0 else []
        )
        yield running
        running.close()


@pytest.fixture(params=SIZES)
def page(browser: Any, reported: dict[str, Any], request: pytest.FixtureRequest) -> Iterator[Any]:
    """The report, opened from the disk; afterwards no error and no request may have been."""
    opened = browser.new_page(viewport={"width": request.param, "height": 900})
    said: list[str] = []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    asked: list[str] = []
    opened.on("request", lambda found: asked.append(found.url))
    opened_as = Path(reported["path"]).as_uri()
    opened.goto(opened_as)
    yield opened
    opened.close()
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [
        Path(reported["path"]).as_uri()
    ]


def test_nothing_is_wider_than_the_page_and_no_texts_overlap(page: Any) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    overlaps = page.evaluate(
        """() => {
          const found = [];
          const boxes = Array.from(
            document.querySelectorAll("h1, h2, h3, h4, p, table, figure, ol, canvas, dl"))
            .filter((e) => e.checkVisibility() && !e.closest(".tall, .wide, .card"))
            .map((e) => [e, e.getBoundingClientRect()]).filter(([, r]) => r.width && r.height);
          for (let i = 0; i < boxes.length; i++) for (let j = i + 1; j < boxes.length; j++) {
            const [a, p] = boxes[i], [b, q] = boxes[j];
            if (a.contains(b) || b.contains(a)) continue;
            const wide = Math.min(p.right, q.right) - Math.max(p.left, q.left);
            const high = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
            if (wide > 1 && high > 1) found.push(a.tagName + " " + b.tagName);
          }
          return found;
        }"""
    )
    assert overlaps == []


def test_names_of_strangers_are_text(page: Any) -> None:
    assert page.title() == "<b>schedule 0-" + page.title().split("-", 1)[1]
    shown = page.locator("#class-table tbody .class").all_text_contents()
    assert sorted(shown) == sorted(HOSTILE.values())
    assert page.locator("bdi img, bdi script, bdi b").count() == 0
    assert page.locator("script").count() == 2
    paths = page.locator(".card .path").all_text_contents()
    assert paths and all(path.endswith(ODD) for path in paths)
    options = page.locator("#gallery-class option").all_text_contents()
    assert HOSTILE["cat"] in options


def test_tables_sort_by_every_column(page: Any) -> None:
    rows = page.locator("#class-table tbody tr")
    cells = "els => els.map(e => parseFloat(e.dataset.v))"
    button = page.locator("#class-table thead button")
    button.nth(2).click()
    first = page.locator("#class-table tbody td:nth-child(3)").evaluate_all(cells)
    assert first == sorted(first, reverse=True) and len(first) == rows.count() == len(HOSTILE)
    button.nth(2).click()
    again = page.locator("#class-table tbody td:nth-child(3)").evaluate_all(cells)
    assert again == sorted(first)
    header = page.locator("#class-table thead th").nth(2)
    assert header.get_attribute("aria-sort") == "ascending"
    button.nth(0).click()
    assert header.get_attribute("aria-sort") is None
    button.nth(1).focus()
    page.keyboard.press("Enter")
    assert page.locator("#class-table thead th").nth(1).get_attribute("aria-sort") == "descending"


def test_classes_and_wrong_images_are_filtered(page: Any) -> None:
    page.fill("#class-filter", "RIGHT to")
    assert page.locator("#class-table tbody tr:visible").count() == 1
    assert page.inner_text("#class-count") == "1 of 4"
    page.fill("#class-filter", "")
    cards = page.locator("#cards .card")
    for place in range(len(HOSTILE)):
        page.select_option("#gallery-class", str(place))
        visible = page.locator("#cards .card:visible")
        labels = visible.evaluate_all("els => els.map(e => e.dataset.true)")
        assert labels == [str(place)] * page.locator(f"#cards .card[data-true='{place}']").count()
    page.select_option("#gallery-class", "")
    said = cards.first.get_attribute("data-said").split()[0]
    page.select_option("#gallery-said", said)
    taken = page.locator("#cards .card:visible").evaluate_all("e => e.map(c => c.dataset.said)")
    assert taken and all(said in one.split(" ") for one in taken)
    assert len(taken) < cards.count()
    page.select_option("#gallery-said", "")
    page.select_option("#gallery-run", "1")
    wrong = cards.evaluate_all("els => els.filter(e => e.dataset.wrong[1] === '1').length")
    assert page.locator("#cards .card:visible").count() == wrong
    assert page.inner_text("#gallery-count") == f"{wrong} shown"


def test_the_matrix_is_read_zoomed_and_ordered(page: Any) -> None:
    matrix = page.locator("#matrix")
    matrix.scroll_into_view_if_needed()
    page.select_option("#matrix-order", "name")
    box = matrix.bounding_box()
    margin, width = page.evaluate("[state.margin, box.clientWidth]")
    assert 0.1 < margin / width <= 0.3
    place = margin + (width - margin) / 8
    page.mouse.move(box["x"] + place, box["y"] + place)
    text = page.inner_text("#matrix-cell")
    names = page.evaluate("data.names")
    assert "of 5 right" in text and names[0][:20] in text
    for name in ("accuracy", "alike"):
        page.select_option("#matrix-order", name)
    all_fit, cell = page.evaluate("[smallest(), state.cell]")
    assert cell == pytest.approx(all_fit)
    page.click("#zoom-in")
    assert all_fit < page.evaluate("state.cell") <= 2 * all_fit
    assert page.evaluate("box.scrollWidth > box.clientWidth && box.scrollHeight > box.clientHeight")
    page.evaluate("box.scrollTo(40, 60)")
    page.wait_for_timeout(50)  # the canvas stays where it was
    assert matrix.bounding_box() == pytest.approx(box, abs=12)
    page.click("#zoom-out")
    page.click("#zoom-reset")
    assert page.evaluate("state.cell") == pytest.approx(page.evaluate("smallest()"))
    page.select_option("#matrix-run", "1")
    assert page.locator(".confusions:visible").get_attribute("data-run") == "1"


def test_the_matrix_is_read_without_a_pointer(page: Any) -> None:
    page.select_option("#matrix-order", "name")
    page.focus("#matrix-box")
    names, cells = page.evaluate("[data.names, data.runs[0].cells]")
    counts = {(label, predicted): n for label, predicted, n in cells}
    for key, cell in (("ArrowRight", (0, 0)), ("ArrowDown", (1, 0)), ("ArrowRight", (1, 1))):
        page.keyboard.press(key)
        text = page.locator("#matrix-cell").text_content()
        assert text.startswith(f"{counts.get(cell, 0)} of 5") and names[cell[0]] in text


def test_every_confused_pair_is_in_the_table(page: Any) -> None:
    rows = page.locator(".confusions[data-run='0'] tbody tr")
    cells = page.evaluate("data.runs[0].cells.filter(([a, b]) => a !== b)")
    assert rows.count() == len(cells) > 0
    counts = page.locator(".confusions[data-run='0'] tbody td:nth-child(3)").all_text_contents()
    assert [int(n) for n in counts] == sorted((n for _, _, n in cells), reverse=True)
    assert f"All {len(cells)} pairs" in page.locator(".confusions .note").first.text_content()


WRITTEN = """() => {
  const found = [], write = context.fillText.bind(context);
  context.fillText = (text, x, y, most) => {
    const t = context.getTransform(), ratio = canvas.width / box.clientWidth;
    const long = context.measureText(text).width;
    const start = x - long * ({ right: 1, center: 0.5 }[context.textAlign] ?? 0);
    const ends = [start, start + long].map((at) =>
      [t.a * at + t.c * y + t.e, t.b * at + t.d * y + t.f]);
    found.push([text, ...ends.flat().map((at) => at / ratio)]);
    write(text, x, y, most);
  };
  draw();
  return [found, state.margin, box.clientWidth];
}"""


@pytest.mark.parametrize("width", SIZES)
def test_names_of_the_matrix_stand_beside_its_cells(
    browser: Any, reported: dict[str, Any], width: int
) -> None:
    """Of each row and of each column, and none over a cell."""
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto(Path(reported["path"]).as_uri())
    texts, margin, whole = page.evaluate(WRITTEN)
    names = [row for row in texts if not row[0].isdigit() and row[0][-1] not in "→↓"]
    assert len(names) == 2 * len(HOSTILE)
    rows = [row for row in names if row[2] == pytest.approx(row[4])]
    assert len(rows) == len(HOSTILE) and [row[0] for row in rows] == [
        row[0] for row in names if row not in rows
    ]
    for text, x0, y0, x1, y1 in names:
        assert len(text) > 2 and 0 <= min(x0, y0, x1, y1) <= max(x0, y0, x1, y1) <= whole
        assert max(x0, x1) < margin or max(y0, y1) < margin
    page.close()


@pytest.mark.parametrize("width", SIZES)
def test_many_classes_have_their_names_beside_the_cells_wherever_one_scrolls(
    browser: Any, reported: dict[str, Any], width: int
) -> None:
    """Every name of the rows and columns in view; of all 200 at once, as many as fit."""
    text = Path(reported["path"]).read_text(encoding="utf-8")
    data = {
        "names": [f"class {label}" for label in range(200)],
        "n": [5] * 200,
        "runs": [
            {"name": name, "accuracy": list(range(200)), "alike": list(range(200))}
            | {"cells": [[label, label, 4] for label in range(200)] + [[0, 199, 1], [199, 0, 1]]}
            for name in "ab"
        ],
    }
    text = re.sub(r'(id="matrix-data">).*?(</script>)', rf"\g<1>{json.dumps(data)}\2", text)
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.set_content(text)
    for position in (0, 150, 10**6):
        page.evaluate("position => { box.scrollTo(position, position) }", position)
        page.wait_for_timeout(50)
        texts, margin, whole = page.evaluate(WRITTEN)
        cell, left = page.evaluate("[state.cell, box.scrollLeft]")
        assert cell == 14
        first, last = int(left / cell) + 1, int((left + whole - margin) / cell) - 2
        for label in range(first, last + 1):
            assert [row[0] for row in texts].count(f"class {label}") == 2, label
    page.click("#zoom-reset")
    texts, margin, whole = page.evaluate(WRITTEN)
    assert len([row for row in texts if row[0].startswith("class")]) >= (whole - margin) / 11
    assert "class is named" in page.inner_text("#matrix-names")
    page.close()


def test_a_table_that_goes_on_has_a_shade(browser: Any, reported: dict[str, Any]) -> None:
    """On a phone, at the side where it goes on, and its first column stays."""
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(Path(reported["path"]).as_uri())
    table = page.locator("#results .wide").first
    assert table.evaluate("e => e.scrollWidth > e.clientWidth + 50")
    table.scroll_into_view_if_needed()
    bounds = table.bounding_box()
    darkness = []
    for position in (0, 10**6):
        table.evaluate("(e, position) => { e.scrollLeft = position }", position)
        clip = {
            "x": bounds["x"] + bounds["width"] - 2,
            "y": bounds["y"] + bounds["height"] - 4,
            "width": 1,
            "height": 1,
        }
        image = Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("L")
        darkness.append(image.getpixel((0, 0)))
    assert darkness[0] < darkness[1] - 20
    header = table.locator("tbody th").first
    assert header.bounding_box()["x"] == pytest.approx(bounds["x"], abs=1)
    page.close()


def test_a_study_follows_the_theme(browser: Any, tmp_path: Path) -> None:
    """Its SVG, as a page embeds it: light by itself, dark in a dark page."""
    path = tmp_path / "study.svg"
    curve = {"a": np.linspace(0.1, 1, 5)}
    path.write_bytes(figures.themed(figures.rendered(figures.retained(curve, [0.5]), "svg")))
    assert figures.themed(path.read_bytes()) == path.read_bytes()
    source = pages.data_uri(path.read_bytes(), "image/svg+xml")
    for scheme, is_dark in (("light", False), ("dark", True)):
        page = browser.new_page(color_scheme=scheme)
        page.set_content(f'<meta name="color-scheme" content="light dark"><img src="{source}">')
        shot = page.locator("img").screenshot()
        pixels = np.asarray(Image.open(io.BytesIO(shot)).convert("L"))
        assert (np.median(pixels) < 60) == is_dark
        assert (pixels > 200).any() and (pixels < 100).any()  # the ink differs from the paper
        page.close()


def test_the_report_alone_answers_the_questions_of_its_readers(
    page: Any, reported: dict[str, Any]
) -> None:
    """Which classes are worst and what they are taken for, which phase helped, what views cost."""
    run = reported["runs"][0]
    found = evaluate(run, **reported["given"])
    worst = page.locator("#classes .ranked[data-kind=worst]").first.locator("li")
    names = [worst.nth(i).locator(".class").text_content() for i in range(worst.count())]
    assert names == [row["class"] for row in found.worst]
    taken = [worst.nth(i).locator(".taken").all_text_contents() for i in range(worst.count())]
    said = [[row["confused_with"]] if row["confused_with"] else [] for row in found.worst]
    assert taken == said

    ended = {row.epoch: row.val_top1 for row in read_epochs(run)}
    changes = {1: None, 2: ended[4] - ended[2], 3: ended[5] - max(ended[4], ended[2])}
    table = page.locator("#training .phase-table").first.locator("tbody tr")
    for place, change in changes.items():
        cell = table.nth(place - 1).locator("td").last.text_content()
        assert cell.startswith("\u2013" if change is None else f"{100 * change:+.1f}")
    most = max(change for change in changes.values() if change is not None)
    tags = page.locator("#training .phase-table").first.locator(".tag").all_text_contents()
    assert tags == (["helped most"] if most > 0 else [])

    costs = page.locator("#views table").first.locator("tbody tr")
    assert costs.locator("th").all_text_contents() == ["none", "odd_1"]
    for place, reads in enumerate(("3", "2")):
        cells = costs.nth(place).locator("td").all_text_contents()
        assert cells[-1] == reads
        assert cells[0] == "60" and cells[2].endswith(" ms") and float(cells[2][:-3]) > 0


def test_points_of_an_embedding_show_their_images(
    browser: Any, reported: dict[str, Any], tmp_path: Path
) -> None:
    """By mouse and by keyboard, on the study's own page and in a report."""
    found = study_tsne("efficientnet_lite0", count=3, out=tmp_path, **reported["given"])
    whole = tmp_path / "report.html"
    report(reported["runs"][:1], study=tmp_path, out=whole, **reported["given"])
    for path in (Path(found.files[-1]), whole):
        # Without smooth scrolling, which a slow machine has not finished when the mouse gets there.
        page = browser.new_page(reduced_motion="reduce")
        said: list[str] = []
        page.on("console", lambda message, said=said: said.append(message.text))
        page.goto(path.as_uri())
        point = page.locator(".scatter g").nth(7)
        shown = "g => getComputedStyle(g.querySelector('image')).visibility"
        assert point.evaluate(shown) == "hidden"
        point.focus()
        assert point.evaluate(shown) == "visible"
        point.locator("circle").hover(force=True)
        assert point.evaluate(shown) == "visible"
        assert point.locator("image").evaluate("i => i.getBoundingClientRect().width") > 20
        assert page.locator(".legend bdi").all_text_contents() == sorted(
            {row["name"] for row in found.table}
        )
        assert said == []
        page.close()


def test_a_dark_page_and_a_printed_one_are_whole(browser: Any, reported: dict[str, Any]) -> None:
    page = browser.new_page(color_scheme="dark")
    page.goto(Path(reported["path"]).as_uri())
    ink, paper = page.evaluate(
        "['color', 'backgroundColor'].map((n) => getComputedStyle(document.body)[n])"
    )
    assert sum(map(int, ink[4:-1].split(", "))) > 3 * 180 > sum(map(int, paper[4:-1].split(", ")))
    drawn = page.evaluate("getComputedStyle(document.querySelector('.chart svg text')).fill")
    assert drawn == ink
    assert page.locator("details[open]").count() == 0  # of two runs
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    page.evaluate("window.dispatchEvent(new Event('resize'))")
    assert page.evaluate("state.cell") == pytest.approx(page.evaluate("smallest()"))
    assert page.locator("details[open]").count() == 2
    assert page.locator(".confusions:visible").count() == 2
    assert not page.locator("nav").is_visible() and not page.locator(".controls").first.is_visible()
    assert page.locator("#cards .card:visible").count() == min(60, reported["report"].shown)
    inside = page.locator("#results table").first.evaluate("t => t.getBoundingClientRect().right")
    assert inside <= page.evaluate("window.innerWidth")
    pixel = "context.getImageData(canvas.width - 10, 10, 1, 1).data"
    assert min(page.evaluate(f"Array.from({pixel})")) > 200  # paper is light, in the dark too
    page.emulate_media(media="screen")
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.locator(".confusions:visible").count() == 1
    assert page.pdf().startswith(b"%PDF")
    page.close()
