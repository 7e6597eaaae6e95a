"""The small size of `python -m benchmarks`: every row that needs no GPU, once; the sides agree.

Never how fast: that is what the page is for.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from benchmarks import (
    gpu,
    growth,
    hand_written,
    harness,
    heads,
    network_memory,
    reading,
    report,
    scale,
    small_things,
)
from benchmarks.__main__ import main
from benchmarks.datasets import tiny_imagenet, write_files
from benchmarks.gpu import featurize_on
from benchmarks.harness import Case, Check, Setting, compare, roof
from benchmarks.heads import epochs_on
from benchmarks.networks import epoch_of_resnet
from benchmarks.page import measured, write_measured
from benchmarks.rows import ROWS, Row, Target
from featurecache.features.spaces import Space

# More than five seconds each: they start processes, or load and compile networks.
SLOW = {
    "featurize_f32", "featurize_bf16", "two_backbones", "head_epoch", "paper", "defaults",
    "small_things",
}  # fmt: skip
MARKED = [
    pytest.param(row, id=row.name, marks=[pytest.mark.slow] if row.name in SLOW else [])
    for row in ROWS
    if row.needs != "cuda" and row.name not in ("growth", "network_memory")  # tested in parts
]


@pytest.fixture(autouse=True)
def quick_roof(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product of large matrices takes a second; what it reaches is no matter here."""
    monkeypatch.setattr(harness, "roof", lambda precision="f32": roof(precision, size=16))


def test_the_profile_of_reading_rows_is_of_these_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    vectors = Space.vectors

    def counted(space: Space, items: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        read.append(len(items))
        return vectors(space, items)

    monkeypatch.setattr(Space, "vectors", counted)
    again, first = reading.random_rows(Setting(tmp_path, small=True, repeats=1))
    assert set(read) == {16}
    assert len(first.profile) == 3 and not again.profile


@pytest.mark.slow
@pytest.mark.parametrize("row", MARKED)
def test_the_sides_of_a_row_agree(row: Row, tmp_path: Path) -> None:
    setting = Setting(tmp_path, small=True, repeats=1)
    if lack := row.lacks(setting):
        pytest.skip(lack)
    cases = row.run(setting)
    assert cases
    assert [check.said for case in cases for check in case.checks if not check.ok] == []
    named = {figure for case in cases for figure in case.all_figures()}
    assert {target.figure for target in row.targets} <= named
    # What is kept gives the section that is printed, whatever the numbers are.
    result = report.result_of(row, cases, 1, 0.0)
    assert row.name in report.section(row, result)


@pytest.mark.slow
def test_the_rows_of_a_gpu_run_on_a_cpu(tmp_path: Path) -> None:
    setting = Setting(tmp_path, small=True, repeats=1)
    case, check = epoch_of_resnet(setting, torch.device("cpu"), "bf16")
    assert check.ok and len(case.seconds) == 2
    cases = [*featurize_on("cpu", setting), *epochs_on("cpu", setting)]
    assert [check.said for case in cases for check in case.checks if not check.ok] == []
    for name, found in (("gpu", cases[:3]), ("gpu_head_epoch", cases[3:])):
        row = next(row for row in ROWS if row.name == name)
        figures = {figure for case in found for figure in case.all_figures()}
        assert {target.figure for target in row.targets} <= figures
        assert name in report.section(row, report.result_of(row, found, 1, 0.0))


def test_a_target_is_of_its_case_and_has_a_bound() -> None:
    case = Case("a", {"ours": [2.0, 1.0, 3.0], "peer": [9.0, 8.0, 10.0]}, figures={"error": 0.5})
    assert case.all_figures() == {"x peer": 4.5, "error": 0.5}
    assert Target("x peer", 4).of(case) == 4.5
    assert Target("x peer", 4, case="b").of(case) is None
    assert Target("x peer", 4.5).met(4.5) and not Target("x peer", 4.6).met(4.5)
    assert Target("error", most=0.5).met(0.5) and not Target("error", most=0.4).met(0.5)


def test_a_met_target_has_a_next_goal_where_its_limit_is_known() -> None:
    case = Case("a", {"ours": [2.0], "peer": [8.0], "bare": [1.0]}, figures={"at most": 10, "s": 3})
    assert Target("x peer", 3, limit="at most").next_goal(case) == "≥ 7 (limit 10)"
    assert Target("x peer", 3, limit="bare").next_goal(case) == "≥ 6 (limit 8)"  # twice as fast
    assert Target("x peer", 5, limit="bare").next_goal(case) == "limit 8"  # missed
    assert Target("s", most=4, limit=1).next_goal(case) == "≤ 2 (limit 1)"
    assert Target("s", most=4, limit=3.5).next_goal(case) == "at the limit, 3.5"
    assert Target("x peer", 3, limit="not kept").next_goal(case) == "limit not kept"
    assert Target("x peer", 3).next_goal(case) == "no limit known"
    assert Target("x peer", 5).next_goal(case) == ""


def test_a_result_without_a_second_run_of_ours_says_so() -> None:
    row = Row("network.featurize_f32", "a title")
    older = report.result_of(row, [Case("a", {"ours": [1.0], "peer": [2.0]})], 3, 1.0)
    said = "Measured before each repeat had *ours again*"
    assert older["order"] == "random" and said not in report.section(row, older)
    del older["order"]
    assert said in report.section(row, older)
    older["repeats"] = 1
    assert "One repeat" in report.section(row, older)
    older["repeats"], older["cases"][0]["seconds"]["ours again"] = 3, [1.0]
    assert "noise" not in report.section(row, older)


def test_sides_that_need_each_other_stay_together() -> None:
    calls: list[str] = []
    names = ("ours", "warm", "peer", "its second half")
    sides = {name: lambda name=name: calls.append(name) for name in names}
    chains = [("ours", "warm"), ("peer", "its second half")]
    seconds, _ = compare(sides, 8, chains=chains)
    assert set(seconds) == {*names, "ours again", "warm again"}
    pairs = list(zip(calls[4::2], calls[5::2], strict=True))
    assert len(pairs) == 24 and set(pairs) == set(chains)
    orders = {tuple(pairs[i : i + 3]) for i in range(0, 24, 3)}
    assert len(orders) == 3  # the two runs of ours look alike


@pytest.mark.slow
def test_the_processes_of_the_rows_of_growth_and_memory(tmp_path: Path) -> None:
    setting = Setting(tmp_path, small=True)
    data = write_files(tmp_path / "files", growth._numbered(setting, 8))
    found = growth._fresh(data, tmp_path, small=True)
    assert set(found) == {"seconds", "process", "worker", "rows"}
    assert found["rows"] == 8 and found["seconds"] > 0 and found["process"] > 100
    network_memory._write(tmp_path / "pictures", 20)
    assert network_memory._peak(tmp_path / "pictures") > 100  # MB


def test_the_command_measures_the_rows_of_a_gpu_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows themselves run on a CPU above; here a device and what it measures are made up."""
    monkeypatch.setattr(report, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(report, "STORE", tmp_path / "measured.json")
    report.PAGE.write_text("<!-- measured -->\n<!-- end of measured -->\n")
    kept = report.result_of(ROWS[0], [Case("a case", {"ours": [1.0]})], 1, 1.0)
    report.write_results({ROWS[0].name: kept, "gpu": {"lacks": "no CUDA device"}})
    settings: list[Setting] = []

    def cases(device: str, setting: Setting) -> list[Case]:
        assert device == "cuda" and Path(os.environ[harness.MEMOS]).parent == setting.folder
        settings.append(setting)
        peers = ("ours", "timm eager AMP", "timm torch.compile AMP")
        return [Case("images in memory, bf16", {side: [1.0, 2.0] for side in peers}, 9000)]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a made device")
    monkeypatch.setattr(gpu, "featurize_on", cases)
    monkeypatch.setattr(heads, "epochs_on", cases)
    monkeypatch.setattr(
        gpu, "epoch_of_resnet",
        lambda setting, device, precision: (cases(device.type, setting)[0], Check("alike", True)),
    )  # fmt: skip
    monkeypatch.setattr("benchmarks.__main__.STORE", report.STORE)
    done = CliRunner().invoke(main, ["--gpu", "--repeats", "2"])
    assert done.exit_code == 0, done.output
    results = report.read_results()
    names = [row.name for row in ROWS if row.needs == "cuda"]
    assert list(results) == [ROWS[0].name, *names] and results[ROWS[0].name] == kept
    for name in names:
        assert results[name]["repeats"] == 2 and "a made device" in results[name]["machine"]
        assert results[name]["cases"][0]["seconds"]["ours"] == [1.0, 2.0]
        assert f"### {name}: " in report.PAGE.read_text()
    assert [setting.repeats for setting in settings] == [2, 2, 2]
    assert "| `gpu` | images in memory, bf16 | x timm eager AMP" in report.PAGE.read_text()


def test_rows_of_whole_processes_run_each_side_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the processes would give is made up here: n images take n seconds."""
    setting = Setting(tmp_path, small=True, repeats=3)
    started: list[str] = []

    def fresh(data: Path, folder: Path, small: bool) -> dict[str, float]:
        started.append(data.name)
        count = int(data.name.split("-")[1])
        return {"seconds": count, "rows": count, "process": 7.0, "worker": 1.0}

    monkeypatch.setattr(growth, "_fresh", fresh)
    (case,) = growth.growth(setting)
    assert [started.count(name) for name in ("files-12", "files-18", "files-24")] == [6, 6, 6]
    assert started[:3] != ["files-12", "files-18", "files-24"]
    assert case.figures["slope, later / earlier"] == 1.0
    assert case.figures["slope, later / earlier again"] == 1.0

    monkeypatch.setattr(network_memory, "_write", lambda folder, count: None)
    monkeypatch.setattr(network_memory, "_peak", lambda folder: float(folder.name) + 100)
    (case,) = network_memory.network_memory(setting)
    assert case.figures["peak memory, last / first"] == 180 / 140
    assert case.figures["peak memory, last / first again"] == 180 / 140

    used = iter(range(100))
    monkeypatch.setattr(
        small_things, "_process", lambda *words: small_things.Used(next(used), 5.0, "a\nseconds")
    )
    first, second = small_things._commands({"plan": ["plan"], "why": ["why"]}, 3)
    assert (first.name, second.name) == ("plan", "why")
    assert set(first.figures) == {"CPU seconds", "peak memory, MB", "CPU seconds again"}
    assert next(used) == 14  # each once, and then twice in each repeat
    case = small_things._new_cache(setting, ["--data", ""], [b"", b""])
    assert {side: len(spent) for side, spent in case.seconds.items()} == {
        "ours": 3, "timm loop": 3, "ours again": 3
    }  # fmt: skip


def test_the_machine_is_named_with_what_its_products_reach() -> None:
    assert roof("f32", size=32) > 0 and roof("bf16", size=32) > 0
    assert "matrix products " in harness.machine() and "GFLOP/s in f32" in harness.machine()


def test_sides_are_interleaved_after_a_warm_up() -> None:
    calls: list[str] = []
    sides = {name: lambda name=name: calls.append(name) or name for name in ("ours", "peer")}
    seconds, results = compare(sides, 2, warm={"peer": lambda: calls.append("warm")})
    assert calls[:2] == ["ours", "warm"]
    for repeat in (calls[2:5], calls[5:]):  # in any order, ours twice
        assert sorted(repeat) == ["ours", "ours", "peer"]
    assert results == {"ours": "ours", "peer": "peer", "ours again": "ours"}
    assert [len(times) for times in seconds.values()] == [2, 2, 2]


def test_measuring_a_row_leaves_the_others_and_the_written_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(report, "STORE", tmp_path / "measured.json")
    report.PAGE.write_text("before\n<!-- measured -->\n<!-- end of measured -->\nafter\n")
    row, other = ROWS[0], ROWS[1]
    missed = Case("a case", {"ours": [1.0], "timm eager f32": [2.0]}, checks=[Check("7%", False)])
    report.write_results({row.name: report.result_of(row, [missed], 1, 1.0)})
    page = report.PAGE.read_text()
    assert page.startswith("before\n") and page.endswith("\nafter\n")
    line = next(line for line in page.splitlines() if line.startswith(f"| `{row.name}` "))
    assert "**missed**, sides disagree" in line
    assert "**disagrees:** 7%" in page
    results = report.read_results() | {other.name: {"lacks": "no such thing here"}}
    report.write_results(results)
    again = report.PAGE.read_text()
    assert line in again and "Not measured: no such thing here." in again


def test_the_page_is_what_the_kept_figures_give() -> None:
    assert measured(report.PAGE).strip() == report.rendered(report.read_results()).strip()


def test_markers_keep_what_stands_around_them(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- measured -->\nold\n<!-- end of measured -->\nb\n")
    write_measured(page, "new")
    assert measured(page) == "\nnew\n"
    assert page.read_text() == "a\n<!-- measured -->\nnew\n<!-- end of measured -->\nb\n"


def test_the_list_names_every_row_and_an_unknown_one_is_refused() -> None:
    listed = CliRunner().invoke(main, ["--list"])
    assert listed.exit_code == 0
    assert [line.split()[0] for line in listed.output.splitlines()] == [row.name for row in ROWS]
    assert CliRunner().invoke(main, ["no_such_row"]).exit_code == 2


def test_the_hand_written_script_reads_both_splits(tmp_path: Path) -> None:
    root = tiny_imagenet(Setting(tmp_path, small=True), train=2, val=1)
    assert len(hand_written.TinyImageNet(root, "train")) == 12
    assert len(hand_written.TinyImageNet(root, "val")) == 6
    image, label = hand_written.TinyImageNet(root, "val")[5]
    assert image.shape == (64, 64, 3) and label == 5


# ---- the model of docs/scale.md ----


@pytest.mark.slow
def test_the_page_of_scale_is_what_the_model_says() -> None:
    text = scale.PAGE.read_text(encoding="utf-8")
    assert text.split(scale.BEGIN)[1].split(scale.END)[0] == "".join(scale.page())


def test_the_model_plays_a_queue() -> None:
    """Known answers: no failures and equal workers; a failure that costs what it must."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(scale.F, "spread", 0.0)
        patch.setitem(scale.F, "failure", float("inf"))
        run = scale.Run(images=10_240, gpus=4, rows=512)
        assert scale.played(run, rate=512.0) == pytest.approx((scale.F["start"] + 5.0, 0, 0))
        patch.setitem(scale.F, "failure", 3.0)
        seconds, failures, lost = scale.played(run, rate=512.0)
        assert failures > 0 and lost > 0 and seconds > scale.F["start"] + 5.0
    long = scale.played(scale.Run(1e9, 1000, 512), 5000.0)[0]
    assert long == pytest.approx(1e9 / 5e6, rel=0.1)


def test_the_model_decodes_as_fast_as_was_measured() -> None:
    line = next(line for line in measured(report.PAGE).splitlines() if "| 500 px | ours |" in line)
    shown = float(line.split("|")[3].split()[0].replace(",", ""))
    assert scale.F["decode"] == pytest.approx(shown, rel=1e-3)


def test_the_model_finds_what_binds() -> None:
    assert scale.simulate(scale.Run(1e8, 100)).bound == "gets"
    assert scale.simulate(scale.Run(1e8, 1, tar=True)).bound == "GPU"
    assert scale.simulate(scale.Run(1e8, 1000, tar=True)).bound == "driver"
    few, many = (scale.simulate(scale.Run(1e7, gpus, tar=True)) for gpus in (1, 8))
    assert 7 < few.seconds / many.seconds < 8.1
