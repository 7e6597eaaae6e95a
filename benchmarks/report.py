"""From what was measured to the page: a table of all targets, then a section for each row.

Every repeat of every side is kept in benchmarks/measured.json, and the page is made from that file
alone, so measuring some rows leaves the others as they were.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.harness import AGAIN, Case, Check
from benchmarks.page import DOCS, write_measured
from benchmarks.rows import ROWS, Row

PAGE = DOCS / "benchmarks.md"
STORE = Path(__file__).parent / "measured.json"

Result = dict[str, Any]  # of one row, as it is kept


def result_of(row: Row, cases: Sequence[Case], repeats: int, took: float) -> Result:
    """What is kept of a measured row, with when, on what and with which versions."""
    return {
        "date": harness.today(),
        "machine": harness.machine(),
        "versions": harness.versions(),
        "repeats": repeats,
        "order": "random",  # of the sides in each repeat, ours twice; older results lack this
        "took": round(took),
        "cases": [_rounded(vars(case) | {"checks": [vars(c) for c in case.checks]})
                  for case in cases],
    }  # fmt: skip


def read_results() -> dict[str, Result]:
    return json.loads(STORE.read_text(encoding="utf-8")) if STORE.exists() else {}


def kept_rate(row: str, case: str) -> float:
    """Things per second of our side of a case, by the median of the repeats that are kept."""
    (found,) = (each for each in _cases(read_results()[row]) if each.name == case)
    return found.amount / statistics.median(found.seconds[harness.OURS])


def write_results(results: Mapping[str, Result]) -> None:
    """Keep what was measured, and write the page again."""
    ordered = {row.name: results[row.name] for row in ROWS if row.name in results}
    STORE.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write_measured(PAGE, rendered(ordered))


def rendered(results: Mapping[str, Result]) -> str:
    """The measured part of the page."""
    lines = ["| row | case | must reach | measured | | next goal |", "|---|---|---|---|---|---|"]
    sections = []
    hours = sum(result.get("took", 0) for result in results.values()) / 3600
    for row in ROWS:
        result = results.get(row.name, {"lacks": "not run yet"})
        lines += _summary(row, result)
        sections.append(section(row, result))
    total = f"All rows together took {hours:.1f} hours of measuring."
    return "\n\n".join(["\n".join(lines), total, *sections])


def section(row: Row, result: Result) -> str:
    """One row in Markdown: what it does, a table of its sides, how they agree, where time goes."""
    parts = [f"### {row.name}: {row.title}", row.description]
    if "lacks" in result:
        return "\n\n".join([*parts, f"Not measured: {result['lacks']}."])
    lines = ["| case | side | median | least to most | ratio |", "|---|---|---|---|---|"]
    said = []
    for case in _cases(result):
        lines += _sides(case)
        said += [f"- {case.name}: {name}: {value:.4g}" for name, value in case.figures.items()]
        for check in case.checks:
            said.append(f"- {case.name}: {'' if check.ok else '**disagrees:** '}{check.said}")
        if case.profile:
            said.append(f"- {case.name}: where our time goes: {'; '.join(case.profile)}")
    used = ", ".join(f"{name} {value}" for name, value in result["versions"].items())
    when = (
        f"{result['date']}, {result['repeats']} repeats, {result['took']} s in all; "
        f"{result['machine']}; {used}"
    )
    table = ["\n".join(lines)] if len(lines) > 2 else []
    return "\n\n".join([*parts, *table, "\n".join(said), *_noise(result), when])


def _noise(result: Result) -> list[str]:
    """What a result that has no second run of ours says of the noise of the machine."""
    if result["repeats"] == 1:
        return ["One repeat: ours was not run again, so the noise of these figures is not known."]
    if "order" in result or any(AGAIN in case["seconds"] for case in result["cases"]):
        return []
    return [
        f"Measured before each repeat had *{AGAIN}* and an order of its own: the noise of these "
        "figures is not known."
    ]


def _summary(row: Row, result: Result) -> list[str]:
    """The lines of a row in the table of targets."""
    if "lacks" in result:
        return [f"| `{row.name}` | | {'; '.join(map(str, row.targets))} | {result['lacks']} | | |"]
    lines = []
    for case in _cases(result):
        fails = [check for check in case.checks if not check.ok]
        agree = ", sides disagree" if fails else ""
        found = [(target, target.of(case)) for target in row.targets]
        for target, value in found:
            if value is not None:
                met = "met" if target.met(value) else "**missed**"
                lines.append(
                    f"| `{row.name}` | {case.name} | {target} | {value:.3g} | {met}{agree} "
                    f"| {target.next_goal(case)} |"
                )
        if all(value is None for _, value in found):
            figures = "; ".join(f"{n}: {v:.3g}" for n, v in case.all_figures().items())
            lines.append(f"| `{row.name}` | {case.name} | (reported) | {figures} | {agree[2:]} | |")
    return lines


def _sides(case: Case) -> list[str]:
    lines = []
    ratios = case.ratios() if case.seconds else {}
    for side, seconds in case.seconds.items():
        shown = [_shown(case, s) for s in (statistics.median(seconds), max(seconds), min(seconds))]
        if not case.amount:  # seconds: the least comes first, as the least rate does
            shown[1:] = reversed(shown[1:])
        ratio = f"{ratios[f'x {side}']:.2f}" if f"x {side}" in ratios else ""
        unit = case.unit if case.amount else "s"
        lines.append(
            f"| {case.name} | {side} | {shown[0]} {unit} | {shown[1]} to {shown[2]} | {ratio} |"
        )
    return lines


def _shown(case: Case, seconds: float) -> str:
    value = case.amount / seconds if case.amount else seconds
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _cases(result: Result) -> list[Case]:
    return [
        Case(**{**case, "checks": [Check(**check) for check in case["checks"]]})
        for case in result["cases"]
    ]


def _rounded(value: Any) -> Any:
    """Numbers with six digits: no clock here knows more."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list) else value
