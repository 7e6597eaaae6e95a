"""What a report compares: which runs are of a kind, through which views, and what differs."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

from featurecache.features.store import Cache
from featurecache.runs.predictions import Predictions, predict_split
from featurecache.runs.record import read_run
from featurecache.stages.looking.report import report
from featurecache.stages.looking.report_runs import schedule_differences
from featurecache.stages.looking.report_verdict import groups, verdict_of
from featurecache.stages.looking.report_views import through_views

Runs = dict[str, Path]


def predicted(runs: Runs, names: list[str], data: Path, cache: Path) -> Predictions:
    return predict_split([runs[name] for name in names], "val", ["none"], None, data, cache)


def test_runs_that_differ_in_their_seed_are_one_kind(
    small_runs: Runs, small_data: Path, small_cache: Path
) -> None:
    names = ["split", "folds", "split_1"]
    asked = predicted(small_runs, names, small_data, small_cache)
    found = groups(asked, names)
    assert [(group.name, group.seeds) for group in found] == [
        ("split (2 seeds)", (0, 1)),
        ("folds", (0,)),
    ]
    assert found[0].right.shape == (2, 12) and found[1].baseline is not None
    twice = dataclasses.replace(asked, records=[asked.records[0]] * 3)
    assert [len(group.seeds) for group in groups(twice, names)] == [1, 1, 1]
    # Without a schedule, each seed may choose another head.
    records = [
        asked.records[0].model_copy(
            update={
                "candidates": [{"head": "logistic", "views": {"none": 1.0}}],
                "schedule": asked.records[0].schedule | {"seed": seed, "batch_size": 8 + seed},
            }
        )
        for seed in range(3)
    ]
    default = groups(dataclasses.replace(asked, records=records), names)
    assert [group.seeds for group in default] == [(0, 1, 2)]


def test_a_winner_is_not_judged_by_the_images_that_chose_it(
    small_runs: Runs, small_data: Path, small_cache: Path
) -> None:
    asked = predicted(small_runs, ["split"], small_data, small_cache)
    trials = [{"setting": {"optimizer.lr": lr}, "n": 1} for lr in (0.1, 0.2)]
    swept = dataclasses.replace(
        asked, records=[asked.records[0].model_copy(update={"trials": trials})]
    )
    found = verdict_of(swept, ["split"], "val", True).headline
    assert found.startswith("No verdict: split was chosen among 2 settings by its accuracy on")
    for predictions, split in ((asked, "val"), (swept, "test")):
        assert "No verdict" not in verdict_of(predictions, ["split"], split, True).headline


def test_settings_that_differ_are_listed(small_runs: Runs) -> None:
    split, other, folds = (read_run(small_runs[name]) for name in ("split", "split_1", "folds"))
    assert schedule_differences([split, split]) == []
    (row,) = schedule_differences([split, other])
    assert (row.name, row.values) == ("seed", ("0", "1"))
    rows = {row.name: row.values for row in schedule_differences([split, folds])}
    assert rows["validation.split"] == ("val", None) and rows["validation.folds"] == (None, "3")
    mixed = {"views": {"none": 0.5, "mild_1": 0.5}, "epochs": 1, "optimizer": {"lr": 0.01}}
    schedule = split.schedule | {"phases": [*split.schedule["phases"], mixed]}
    (row,) = schedule_differences([split, split.model_copy(update={"schedule": schedule})])
    assert row.name == "phase 2"
    assert row.values == (None, "mild_1 50% + none 50%, 1 epoch, lr 0.01")
    longer = split.model_copy(update={"schedule": schedule | {"seed": 5}})
    names = [row.name for row in schedule_differences([split, longer])]
    assert names == ["phase 2", "seed"]


def test_every_run_is_seen_through_every_view(
    small_runs: Runs, small_data: Path, small_cache: Path
) -> None:
    asked = predicted(small_runs, ["split", "split_1"], small_data, small_cache)
    spaces = {space.name: space for space in Cache(small_cache).spaces()}
    color = [name for name, space in spaces.items() if space.view == "color_1"]
    first, second = asked.records
    added = {"color_1": color[:1], "mild_3": ["0" * 64]}  # the last is no longer in the cache
    second = second.model_copy(update={"spaces": second.spaces | added})
    rows = through_views(dataclasses.replace(asked, records=[first, second]), spaces)
    assert [row.view for row in rows] == ["none", "color_1", "mild_3"]
    trained = [[cell.trained for cell in row.runs] for row in rows]
    assert trained == [[True, True], [False, True], [False, True]]
    assert all(cell.top1 is not None and cell.interval for row in rows[:2] for cell in row.runs)
    assert [cell.top1 for cell in rows[2].runs] == [None, None]
    assert rows[0].runs[0].top1 == asked.correct_mask(0).mean()


def test_an_older_run_has_the_warnings_of_its_phases(
    small_runs: Runs, small_data: Path, small_cache: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(small_runs["split"], tmp_path / "run"))
    record = json.loads((run / "run.json").read_text())
    record.pop("warnings", None)
    record["schedule"]["phases"] = [{"views": "none", "epochs": n} for n in (1, 2)]
    (run / "run.json").write_text(json.dumps(record))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    changed = [row | {"phase": min(row["epoch"], 2), "val_top1": 1 / row["epoch"]} for row in rows]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
    report(run, data=small_data, cache=small_cache, out=tmp_path / "r.html")
    assert "phase 2 (none) lowered validation top-1" in (tmp_path / "r.html").read_text()
