"""The report: what it says, that it says nothing else, and that strangers' names stay text."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from featurecache.cli import cli
from featurecache.errors import BadInput, NotCached
from featurecache.stages import gallery
from featurecache.stages.evaluate import ask, evaluate
from featurecache.stages.report import report

Runs = dict[str, Path]


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text below each id."""

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(Path(path).read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def written(
    small_runs: Runs, small_data: Path, small_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    out = tmp_path_factory.mktemp("report") / "report.html"
    runs = [small_runs["split"], small_runs["folds"]]
    yield report(runs, data=small_data, cache=small_cache, out=out)


def test_the_page_asks_for_nothing_and_runs_one_script(written: Any) -> None:
    page = Page(written.path)
    addresses = [
        a[name] for _, a in page.tags for name in ("src", "href", "xlink:href") if name in a
    ]
    assert addresses and all(a and (a.startswith(("data:image/", "#"))) for a in addresses)
    handlers = [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert handlers == []
    scripts = [attributes.get("type") for tag, attributes in page.tags if tag == "script"]
    assert scripts == ["application/json", None]
    text = Path(written.path).read_text(encoding="utf-8")
    assert not re.search(r"url\(['\"]?http|@import", text)
    assert "default-src 'none'" in text


def test_the_page_says_what_evaluate_says(
    written: Any, small_runs: Runs, small_data: Path, small_cache: Path
) -> None:
    text = Path(written.path).read_text(encoding="utf-8")
    for name in ("split", "folds"):
        found = evaluate(small_runs[name], data=small_data, cache=small_cache)
        assert f"{100 * found.top1:.1f}" in text
        assert f"{100 * found.interval[0]:.1f}\u2013{100 * found.interval[1]:.1f}" in text
    assert "Means of 3 folds" in text
    assert (written.n, written.notes) == (12, [])
    asked = ask(list(map(Path, written.runs)), "val", ["none"], None, small_data, small_cache)
    assert written.wrong == len(gallery.wrong(asked)) > 0
    assert written.shown == written.wrong == text.count('class="card"')
    assert written.bytes == Path(written.path).stat().st_size < 1_000_000


def test_the_matrix_has_every_image_once(written: Any) -> None:
    text = Path(written.path).read_text(encoding="utf-8")
    found = re.search(r'id="matrix-data">(.*?)</script>', text)
    assert found
    data = json.loads(found[1])
    assert [run["name"] for run in data["runs"]] == ["split", "folds"]
    for run in data["runs"]:
        assert sum(n for _, _, n in run["cells"]) == sum(data["n"]) == 12
        assert sorted(run["accuracy"]) == sorted(run["alike"]) == [0, 1, 2]


def test_the_same_runs_give_the_same_page(
    written: Any, small_data: Path, small_cache: Path, tmp_path: Path
) -> None:
    again = report(written.runs, data=small_data, cache=small_cache, out=tmp_path / "again.html")
    stamp = re.compile(r"Written [\d: -]+UTC")
    first, second = (stamp.sub("", Path(p).read_text()) for p in (written.path, again.path))
    assert first == second


def test_every_class_is_shown_before_one_is_shown_twice(
    small_runs: Runs, small_data: Path, small_cache: Path
) -> None:
    asked = ask([small_runs["split"]], "val", ["none"], None, small_data, small_cache)
    asked.likely[0][:] = np.roll(np.eye(3, dtype=np.float32)[asked.labels[0]], 1, axis=1)
    mistaken = gallery.wrong(asked)
    assert len(mistaken) == 12
    for most in (0, 1, 3, 4, 7, 12, 50):
        shown = gallery.spread(mistaken, asked, most)
        assert len(shown) == len(set(shown)) == min(most, 12)
        counts = np.bincount(asked.labels[0][shown], minlength=3) if shown else np.zeros(3)
        assert counts.max() - counts.min() <= 1
        assert list(asked.labels[0][shown]) == sorted(asked.labels[0][shown])


def test_a_run_without_metrics_and_views_without_vectors_are_said(
    small_runs: Runs, small_data: Path, small_cache: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(small_runs["split"], tmp_path / "run"))
    (run / "metrics.jsonl").unlink()
    record = json.loads((run / "run.json").read_text())
    record["spaces"]["spatial_7"] = ["0" * 64]
    (run / "run.json").write_text(json.dumps(record))
    found = report(run, data=small_data, cache=small_cache, out=tmp_path / "report.html")
    assert found.notes == ["no contact sheet of spatial_7: its vectors are not in this cache"]
    text = Path(found.path).read_text()
    assert "This folder has no metrics of epochs" in text
    assert "not cached" in text and "not in this cache any more" in text


def test_images_that_went_since_leave_a_card_without_a_picture(
    small_runs: Runs, small_data: Path, small_cache: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(gallery, "_pixels", lambda samples, row: None)
    given: dict[str, Any] = {"data": small_data, "cache": small_cache}
    found = report(small_runs["split"], out=tmp_path / "report.html", **given)
    text = Path(found.path).read_text()
    assert text.count("the file is not there any more") == found.shown > 0


def test_studies_are_shown_as_images(
    small_runs: Runs, small_data: Path, small_cache: Path, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"data": small_data, "cache": small_cache, "out": tmp_path / "r.html"}
    folder = tmp_path / "study"
    with pytest.raises(BadInput, match="no such folder"):
        report(small_runs["split"], study=folder, **given)
    folder.mkdir()
    with pytest.raises(BadInput, match="holds no study"):
        report(small_runs["split"], study=folder, **given)
    (folder / "pca.json").write_text('{"study": "pca", "title": "<b>&", "components_90": 41}')
    with pytest.raises(BadInput, match=r"pca\.json: not what a study left"):
        report(small_runs["split"], study=folder, **given)
    (folder / "pca.svg").write_text("<svg><script>alert(1)</script></svg>")
    with pytest.raises(BadInput, match=r"pca\.json: not what a study left"):
        report(small_runs["split"], study=folder, **given)
    (folder / "pca.png").write_bytes(bytes(500))
    report(small_runs["split"], study=folder, **given)
    text = Path(given["out"]).read_text()
    assert "components_90: 41" in text and "&lt;b&gt;&amp;" in text
    assert "alert(1)" not in text and "data:image/svg+xml;base64," in text


def test_what_is_wrong_is_said_before_any_work(
    small_runs: Runs, small_data: Path, small_cache: Path, tmp_path: Path
) -> None:
    run = small_runs["split"]
    given: dict[str, Any] = {"data": small_data, "cache": small_cache, "out": tmp_path / "r.html"}
    for wrong, said in (
        ({"runs": []}, "at least one run"),
        ({"runs": [run, run]}, "each once"),
        ({"runs": [tmp_path]}, "not the folder of a run"),
        ({"runs": [run], "out": tmp_path / "no" / "r.html"}, "its folder does not exist"),
        ({"runs": [run], "pictures": -1}, "must be 0 or more"),
    ):
        with pytest.raises(BadInput, match=said):
            report(**{**given, **wrong})
    with pytest.raises(NotCached):
        report([run], **{**given, "view": "spatial_1"})
    assert not (tmp_path / "r.html").exists()


def test_the_command_writes_the_page(
    small_runs: Runs, small_data: Path, small_cache: Path, tmp_path: Path
) -> None:
    words = ["report", str(small_runs["split"]), "--data", str(small_data), "--quiet"]
    words += ["--cache", str(small_cache), "--out", str(tmp_path / "r.html")]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    assert "r.html: 0." in done.output.replace("\n", "")
    done = CliRunner().invoke(cli, [*words, "--json"])
    assert json.loads(done.output)["path"] == str(tmp_path / "r.html")
