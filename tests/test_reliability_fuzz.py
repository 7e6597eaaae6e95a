"""The readers of benchmarks.reliability.fuzz: on the corpus (which keeps what the fuzzer found),
on valid input with something changed, and under the fuzzer itself for a moment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.reliability.fuzz import CORPUS, READERS, can_fuzz, coverage_guided, whole_shard

FILES = sorted(path for path in CORPUS.glob("*/*") if path.is_file())
KINDS = sorted({path.parent.name for path in FILES})


def test_every_reader_has_a_corpus_and_it_is_small() -> None:
    assert {*KINDS, "shard"} == READERS.keys()  # a shard has 6 KB, and is made instead
    assert sum(path.stat().st_size for path in FILES) < 60_000
    assert max(path.stat().st_size for path in FILES) < 2048


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_corpus_is_read_or_refused(path: Path) -> None:
    READERS[path.parent.name].read(path.read_bytes())


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False),
              st.text(max_size=8), st.sampled_from([-1, 2**63, 2**64, 1e308, "0" * 64, "f" * 64])),
    lambda inner: st.one_of(st.lists(inner, max_size=3),
                            st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=6,
)  # fmt: skip


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values below the top one."""
    if not isinstance(value, dict | list):
        return []
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    return [place for name, inner in inside for place in [(*at, name), *places(inner, (*at, name))]]


@st.composite
def changed(draw: st.DrawFn, whole: Any) -> Any:
    """`whole` with one or two of its values replaced or removed."""
    value = json.loads(json.dumps(whole))
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from(places(value)))
        inner = value
        for name in path[:-1]:
            inner = inner[name]
        if draw(st.booleans()):
            inner[path[-1]] = draw(VALUES)
        else:
            del inner[path[-1]]
        if not places(value):
            break
    return value


@pytest.mark.slow
@settings(max_examples=200)
@given(st.data())
@pytest.mark.parametrize("name", ["record/whole", "record/pictures", "description/whole"])
def test_one_value_changed_under_a_checksum_that_holds(name: str, data: st.DataObject) -> None:
    value = data.draw(changed(json.loads((CORPUS / name).read_text())))
    READERS[name.split("/")[0]].read(json.dumps(value).encode())


@pytest.mark.slow
@settings(max_examples=40)
@given(st.data())
@pytest.mark.parametrize(
    "name", ["policy/flips", "policy/children", "policy/colour", "schedule/full"]
)
def test_one_value_changed_in_what_people_write(name: str, data: st.DataObject) -> None:
    value = data.draw(changed(yaml.safe_load((CORPUS / name).read_text())))
    READERS[name.split("/")[0]].read(yaml.safe_dump(value).encode())


@pytest.mark.slow
@settings(max_examples=60)
@given(st.data())
@pytest.mark.parametrize("kind", ["csv", "shard", "safetensors", "pickle", "schedule"])
def test_bytes_changed_cut_and_moved(kind: str, data: st.DataObject) -> None:
    seeds = [path.read_bytes() for path in FILES if path.parent.name == kind]
    whole = bytearray(data.draw(st.sampled_from(seeds or [whole_shard()])))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole)))
        end = data.draw(st.integers(at, min(at + 8, len(whole))))
        whole[at:end] = data.draw(st.one_of(st.binary(max_size=8), st.just(bytes(whole[:16]))))
    READERS[kind].read(bytes(whole))


@pytest.mark.skipif(can_fuzz() is not None, reason=str(can_fuzz()))
def test_the_fuzzer_finds_nothing_in_a_moment(tmp_path: Path) -> None:
    tally = coverage_guided(2000, tmp_path, ["record", "csv"])  # the others import for seconds
    assert tally.bad == 0, tally.examples
    assert tally.tried >= 500
