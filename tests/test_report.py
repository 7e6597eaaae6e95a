"""The report: what it says, that it says nothing else, and that strangers' names stay text."""

from __future__ import annotations

import dataclasses
import json
import os
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
from featurecache.features.store import Cache
from featurecache.heads.schedules import Schedule
from featurecache.runs.predictions import predict_split
from featurecache.runs.record import read_run
from featurecache.stages.cache.featurize import featurize
from featurecache.stages.heads.ensemble import ensemble
from featurecache.stages.heads.evaluate import evaluate
from featurecache.stages.heads.train_head import read_epochs, train_head
from featurecache.stages.looking import report as stage
from featurecache.stages.looking import report_pictures
from featurecache.stages.looking.report import report
from featurecache.stages.looking.report_runs import Course, phase_rows, training_course
from featurecache.training.epoch_metrics import Epoch

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


@pytest.mark.slow
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
    asked = predict_split(
        list(map(Path, written.runs)), "val", ["none"], None, small_data, small_cache
    )
    assert written.wrong == len(report_pictures.wrong_rows_of(asked)) > 0
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


@pytest.mark.slow
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
    asked = predict_split([small_runs["split"]], "val", ["none"], None, small_data, small_cache)
    asked.probabilities[0][:] = np.roll(np.eye(3, dtype=np.float32)[asked.labels[0]], 1, axis=1)
    mistaken = report_pictures.wrong_rows_of(asked)
    assert len(mistaken) == 12
    for most in (0, 1, 3, 4, 7, 12, 50):
        shown = report_pictures.balanced_sample(mistaken, asked, most)
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
    assert "This run has no metrics per epoch" in text
    assert "not cached" in text and "no longer in this cache" in text


def test_images_that_went_since_leave_a_card_without_a_picture(
    small_runs: Runs, small_data: Path, small_cache: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(report_pictures, "_pixels", lambda samples, row: None)
    given: dict[str, Any] = {"data": small_data, "cache": small_cache}
    found = report(small_runs["split"], out=tmp_path / "report.html", **given)
    text = Path(found.path).read_text()
    assert text.count("the file was deleted or changed") == found.shown > 0


def test_studies_are_shown_as_images(
    small_runs: Runs, small_data: Path, small_cache: Path, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"data": small_data, "cache": small_cache, "out": tmp_path / "r.html"}
    folder = tmp_path / "study"
    with pytest.raises(BadInput, match="no such folder"):
        report(small_runs["split"], study=folder, **given)
    folder.mkdir()
    with pytest.raises(BadInput, match="contains no study"):
        report(small_runs["split"], study=folder, **given)
    (folder / "pca.json").write_text('{"study": "pca", "title": "<b>&", "components_90": 41}')
    with pytest.raises(BadInput, match=r"pca\.json: not the result of a study"):
        report(small_runs["split"], study=folder, **given)
    (folder / "pca.svg").write_text("<svg><script>alert(1)</script></svg>")
    with pytest.raises(BadInput, match=r"pca\.json: not the result of a study"):
        report(small_runs["split"], study=folder, **given)
    (folder / "pca.png").write_bytes(bytes(500))
    (folder / "tsne.json").write_text('{"study": "tsne", "title": "t", "points": 5}')
    for end in (".svg", ".png"):
        (folder / f"tsne{end}").write_bytes(b"x")
    with pytest.raises(BadInput, match=r"tsne\.json: not the result of a study"):
        report(small_runs["split"], study=folder, **given)
    for path in folder.glob("tsne.*"):
        path.unlink()
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
        ({"runs": [run, run]}, "each run only once"),
        ({"runs": [tmp_path]}, "not the folder of a run"),
        ({"runs": [run], "out": tmp_path / "no" / "r.html"}, "its folder does not exist"),
        ({"runs": [run], "pictures": -1}, "must be 0 or more"),
    ):
        with pytest.raises(BadInput, match=said):
            report(**{**given, **wrong})
    with pytest.raises(NotCached):
        report([run], **{**given, "view": "spatial_1"})
    assert not (tmp_path / "r.html").exists()


@pytest.mark.slow
def test_the_command_writes_the_page(
    small_runs: Runs, small_data: Path, small_cache: Path, tmp_path: Path
) -> None:
    words = ["report", str(small_runs["split"]), "--data", str(small_data), "--quiet"]
    words += ["--cache", str(small_cache), "--out", str(tmp_path / "r.html")]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    assert re.search(r"r\.html: \d+\.\d kB, \d+ of \d+ misc", done.output.replace("\n", ""))
    done = CliRunner().invoke(cli, [*words, "--json"])
    assert json.loads(done.output)["path"] == str(tmp_path / "r.html")


@pytest.mark.slow
def test_a_dataset_without_a_split_to_train_on(
    small_runs: Runs, small_data: Path, small_cache: Path, tmp_path: Path
) -> None:
    shutil.copytree(small_data / "val", tmp_path / "data" / "val")
    given: dict[str, Any] = {"data": tmp_path / "data", "cache": small_cache}
    found = report(small_runs["split"], out=tmp_path / "r.html", **given)
    assert found.n == 12
    warned = "36 of these 36 images were trained on"
    assert warned not in Path(found.path).read_text()
    assert "No verdict" not in found.verdict
    given["data"] = small_data
    found = report(small_runs["split"], split="train", out=tmp_path / "r.html", **given)
    assert found.verdict.startswith("No verdict: some of these images were trained on")
    assert warned in (tmp_path / "r.html").read_text()


@pytest.mark.slow
def test_a_page_stays_below_what_can_be_mailed(
    small_runs: Runs, small_data: Path, small_cache: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    given: dict[str, Any] = {"data": small_data, "cache": small_cache, "out": tmp_path / "r.html"}
    bare = report(small_runs["split"], pictures=0, **given)
    whole = report(small_runs["split"], **given)
    assert (bare.shown, whole.shown) == (0, whole.wrong) and whole.wrong >= 4
    monkeypatch.setattr(stage, "MAX_BYTES", (bare.bytes + whole.bytes) // 2)
    less = report(small_runs["split"], **given)
    assert 0 < less.shown < whole.shown and less.bytes <= stage.MAX_BYTES
    assert less.notes == [
        f"shows only {less.shown} misclassified images, to keep the page below 10 MB"
    ]
    monkeypatch.setattr(stage, "MAX_BYTES", 10)
    none = report(small_runs["split"], **given)
    assert none.shown == 0 and none.notes[-1].startswith("the page exceeds 10 MB")


def test_a_run_folder_whose_name_is_not_utf_8(
    small_runs: Runs, small_data: Path, small_cache: Path, tmp_path: Path
) -> None:
    run = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    shutil.copytree(small_runs["split"], run)
    report(run, data=small_data, cache=small_cache, out=tmp_path / "r.html")
    assert "caf\\xe9" in (tmp_path / "r.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_phases_are_those_that_were_trained(
    small_data: Path, small_cache: Path, tmp_path: Path
) -> None:
    """Ramps, mixtures and what comes after pruning, of the setting that won a sweep."""
    schedule = tmp_path / "s.yaml"
    schedule.write_text(
        "backbone: efficientnet_lite0\nhead: {hidden: [8]}\nbatch_size: 8\n"
        "sweep: {grid: {optimizer.lr: [1.0e-2, 1.0e-9]}}\n"
        "pruning: {share: 0.5, epochs: 1}\nphases:\n"
        "  - {views: none, epochs: 2}\n"
        "  - {views: none, ramp_to: color_1, epochs: 2}\n"
        "  - {views: {none: 0.25, color_1: 0.75}, epochs: 1}\n"
    )
    given: dict[str, Any] = {"data": small_data, "cache": small_cache}
    run = train_head(schedule, out=tmp_path / "run", device="cpu", **given).run
    spaces = {space.name: space for space in Cache(small_cache).spaces()}
    found = training_course(read_run(run), read_epochs(run), spaces)
    assert [(p.views, p.augmented, p.first, p.last) for p in found.phases] == [
        ("none", False, 1, 2),
        ("none to color_1", True, 3, 4),
        ("color_1 75% + none 25%", True, 5, 5),
        ("color_1 75% + none 25% after pruning", True, 6, 6),
    ]
    rows = read_epochs(run)
    tops = {row.epoch: row.val_top1 for row in rows}
    for phase in found.phases[1:]:
        assert phase.first is not None and phase.last is not None
        assert phase.change == pytest.approx(tops[phase.last] - tops[phase.first - 1])
    reads = {row.view: row.reads for row in found.views}
    assert reads["none"] == pytest.approx(2 + 1 + 0.5) and sum(reads.values()) == pytest.approx(6)
    report(run, out=tmp_path / "r.html", **given)
    text = (tmp_path / "r.html").read_text()
    assert "winner" in text and "0.01 to" not in text


@pytest.mark.parametrize(
    ("tops", "most"),
    [([0.6, 0.4, 0.59], None), ([0.6, 0.4, 0.65], 2), ([0.5, 0.6, 0.3, 0.62], 1), ([0.5], None)],
)
def test_a_phase_that_makes_good_a_damage_has_not_helped(
    tops: list[float], most: int | None
) -> None:
    """A phase is measured against the best before it; the change is shown beside."""
    schedule = Schedule.model_validate(
        {"backbone": "any", "phases": [{"views": "none", "epochs": 1} for _ in tops]}
    )
    epochs = [
        Epoch(epoch=n, fold=1, phase=n, train_loss=1, train_top1=0, val_loss=1, val_top1=top)
        for n, top in enumerate(tops, 1)
    ]
    found = phase_rows(schedule, epochs)
    assert [phase.helped_most for phase in found] == [place == most for place in range(len(tops))]
    for place in range(1, len(tops)):
        assert found[place].gain == pytest.approx(tops[place] - max(tops[:place]))
        assert found[place].change == pytest.approx(tops[place] - tops[place - 1])


@pytest.mark.slow
def test_runs_that_see_other_pictures_are_not_compared(
    small_runs: Runs, small_data: Path, tiny: dict[str, Any], load_once: None, tmp_path: Path
) -> None:
    """A view goes by a schedule's own augment_seed: color_1 of seed 0 is not color_1 of seed 1."""
    cache = tmp_path / "cache"
    for seed in (0, 1):
        featurize(small_data, policy=["none", "color_1"], cache=cache, seed=seed, **tiny)
    other = Path(shutil.copytree(small_runs["split_1"], tmp_path / "other"))
    record = json.loads((other / "run.json").read_text())
    record["schedule"]["augment_seed"] = 1
    (other / "run.json").write_text(json.dumps(record))
    given: dict[str, Any] = {"data": small_data, "cache": cache}
    runs, out = [small_runs["split"], other], tmp_path / "report.html"
    for seed, comparable in ((None, False), (0, True)):
        report(runs, view="color_1", seed=seed, out=out, **given)
        text = out.read_text(encoding="utf-8")
        assert ("not evaluated on the same view" in text) != comparable
        assert ("McNemar" in text) == comparable
        assert ("No verdict: the runs see different pictures" in text) != comparable
        notes = ensemble(runs, view="color_1", seed=seed, how="mean", **given).notes
        assert any("views of different seeds" in note for note in notes) != comparable
    report(runs, out=out, **given)  # `none` has no seed
    assert "McNemar" in out.read_text(encoding="utf-8")
    with pytest.raises(BadInput, match="pass --seed, which applies to both"):
        evaluate(runs[0], against=other, view="color_1", **given)
    assert evaluate(runs[0], against=other, view="color_1", seed=0, **given).against is not None


@pytest.mark.slow
def test_a_policy_file_that_was_moved_since(
    small_data: Path, tiny: dict[str, Any], load_once: None, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    policy = tmp_path / "flip.yaml"
    policy.write_text("augmenters:\n  - Fliplr: {p: 1.0}\n")
    given: dict[str, Any] = {"data": small_data, "cache": tmp_path / "cache"}
    featurize(policy=["none", "flip.yaml_1"], **given, **tiny)
    (tmp_path / "s.yaml").write_text(
        "backbone: efficientnet_lite0\nhead: {hidden: [8]}\nbatch_size: 8\n"
        "phases: [{views: flip.yaml_1, epochs: 1}]\n"
    )
    run = train_head("s.yaml", out=tmp_path / "run", device="cpu", **given).run
    policy.unlink()
    found = report(run, out="r.html", **given)
    text = Path("r.html").read_text()
    assert found.notes == [] and "flip_1" in text and "not cached" not in text
    assert "<b><bdi>flip</bdi></b>: originals, then draw 1" in text


@pytest.mark.slow
def test_ten_thousand_images_of_two_hundred_classes(
    small_runs: Runs, small_data: Path, small_cache: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """What the page itself costs; asking and decoding grow with the images alone."""
    asked = predict_split([small_runs["split"]], "val", ["none"], None, small_data, small_cache)
    rng = np.random.default_rng(0)
    names = [f"class {number}" for number in range(200)]
    record = asked.records[0].model_copy(update={"classes": names})
    labels = np.repeat(np.arange(200), 50)
    likely = rng.dirichlet(np.full(200, 0.05), 10_000).astype(np.float32)
    likely[np.arange(10_000), labels] += 0.3
    rows = [asked.rows[place % 12] for place in range(10_000)]
    large = dataclasses.replace(
        asked,
        records=[record],
        rows=rows,
        probabilities=[likely],
        labels=[labels],
        baselines=[None],
    )
    monkeypatch.setattr(stage, "predict_split", lambda *_, **__: large)
    monkeypatch.setattr(stage, "training_course", lambda *_: COURSE)
    monkeypatch.setattr(stage, "through_views", lambda *_: [])
    found = report(small_runs["split"], data=small_data, cache=small_cache, out=tmp_path / "r.html")
    assert found.n == 10_000 and found.shown == 500 and found.bytes < 10_000_000
    assert found.seconds < 30
    text = Path(found.path).read_text()
    cells = json.loads(re.search(r'id="matrix-data">(.*?)</script>', text)[1])["runs"][0]["cells"]  # type: ignore[index]
    assert sum(n for _, _, n in cells) == 10_000


COURSE = Course(epochs=0, folds=0, phases=[], validated="none", curves=None, views=[])
