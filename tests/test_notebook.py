"""What a notebook shows of results: all of it text, whatever it is called."""

from __future__ import annotations

import html.parser
from pathlib import Path

import pytest

from featurecache.features.store import Cache
from featurecache.images.datasets import open_dataset
from featurecache.notebook import html_table
from featurecache.stages.heads.evaluate import evaluate
from featurecache.stages.heads.train_head import TrainedRun

HOSTILE = "</td><script>alert('x')</script> & \"q\" <img src=x onerror=y>"
OURS = {"table", "caption", "tr", "th", "td"}


class Page(html.parser.HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"


def shown(result: object) -> Page:
    page = Page(result._repr_html_())  # type: ignore[attr-defined]
    assert page.tags == OURS
    return page


def test_hostile_names_are_text() -> None:
    page = html_table(HOSTILE, {HOSTILE: HOSTILE, "odd": "\udcff", "none": None, "n": 1234})
    page.encode()  # no lone surrogate: a notebook is UTF-8
    found = Page(page)
    assert found.tags == OURS
    assert found.text.split("\n")[:3] == [HOSTILE] * 3
    assert "\\udcff" in found.text and "1,234" in found.text and "none" not in found.text


def test_a_run_with_a_hostile_folder() -> None:
    best = {"epoch": 2, "top1": 0.5, "loss": 1.25}
    found = shown(TrainedRun(run=HOSTILE, best=best, last=best, notes=[HOSTILE]))
    assert found.text.count(HOSTILE) == 2
    assert "best, top1\n0.5000" in found.text


def test_a_dataset_with_hostile_classes(tmp_path: Path) -> None:
    folder = tmp_path / "train" / "<b>&'"
    folder.mkdir(parents=True)
    (folder / "1.png").write_bytes(b"")
    for name in "bcdefg":
        (tmp_path / "train" / name).mkdir()
        (tmp_path / "train" / name / "1.png").write_bytes(b"")
    found = shown(open_dataset(tmp_path))
    assert "train\n7\n" in found.text
    assert "<b>&', b, c, d, e and 2 more" in found.text


@pytest.mark.usefixtures("load_once")
def test_spaces_and_evaluations(
    small_data: Path, small_cache: Path, small_runs: dict[str, Path]
) -> None:
    space = next(s for s in Cache(small_cache).spaces() if s.view == "none")
    assert "rows\n48\n" in shown(space).text
    result = evaluate(small_runs["split"], data=small_data, cache=small_cache)
    assert f"top1\n{result.top1:.4f}\n" in shown(result).text
