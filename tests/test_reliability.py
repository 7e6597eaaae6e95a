"""The small size of `python -m benchmarks.reliability`: every harness, on ours and on the naive
writer. A harness that the naive writer passes proves nothing, so its failing is asserted too."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.reliability.harness import Ours
from benchmarks.reliability.rows import ROWS, Row
from tests.naive import Naive

pytestmark = pytest.mark.slow
# The naive writer may be lucky: two kills hit its few milliseconds of writing half of the time.
ATTEMPTS = {"kills": 12}


def tried(row: Row) -> None:
    if lack := row.lacks():
        pytest.skip(lack)


@pytest.mark.parametrize("row", [row for row in ROWS if row.small], ids=lambda row: row.name)
def test_ours_keeps_its_promises(row: Row, tmp_path: Path) -> None:
    tried(row)
    tally = row.run(Ours(), row.small, tmp_path)
    assert tally.tried > 0
    assert tally.bad == 0, (tally.said, *tally.examples)


@pytest.mark.parametrize("row", [row for row in ROWS if row.for_naive], ids=lambda row: row.name)
def test_the_naive_writer_breaks_them(row: Row, tmp_path: Path) -> None:
    tried(row)
    said = []
    for attempt in range(ATTEMPTS.get(row.name, 3)):
        (folder := tmp_path / str(attempt)).mkdir()
        tally = row.run(Naive(), row.naive or row.small, folder)
        said.append(tally.said)
        if tally.bad:
            return
    pytest.fail(f"the naive writer passes: {said}")
