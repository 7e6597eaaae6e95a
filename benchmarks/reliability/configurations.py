"""Random configurations: the rows of the cache are those that are computed past it."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import yaml
from hypothesis import strategies as st
from PIL import Image

from benchmarks.reliability.harness import Tally, Writer
from benchmarks.reliability.in_process import (
    NETWORK,
    Options,
    networks_loaded_once,
    resolved,
    run_command,
)
from benchmarks.reliability.jobs import NOTICED
from featurecache.commands.printing import SOME_FAILED
from featurecache.features import backbones, engines
from featurecache.features.engines import run_rows
from featurecache.images import views
from featurecache.images.decode import Undecodable, decode
from featurecache.images.policies import find_policy
from featurecache.images.views import View

NAMES = ("first", "second")  # of policy files: few, so that a name comes back with another tree
NUMBERS = st.floats(0, 1).map(lambda value: round(value, 3))
RANGES = st.tuples(NUMBERS, NUMBERS).map(lambda pair: {"range": sorted(pair)})
SOME = st.one_of(NUMBERS, RANGES, st.lists(NUMBERS, min_size=1, max_size=3).map(
    lambda values: {"choice": values}))  # fmt: skip
ANGLES = st.integers(-90, 90)
LEAVES = st.one_of(
    st.builds(lambda p: {"Fliplr": {"p": p}}, NUMBERS),
    st.builds(lambda p: {"Flipud": {"p": p}}, NUMBERS),
    st.builds(lambda a: {"Rotate": {"rotate": a}}, ANGLES),
    st.builds(lambda s: {"GaussianBlur": {"sigma": s}}, SOME),
    st.builds(lambda a, p: {"LinearContrast": {"alpha": a, "per_channel": p}}, SOME, NUMBERS),
    st.builds(lambda m: {"MultiplyAndAddToBrightness": {"mul": m, "add": {"range": [-20, 20]}}},
              SOME),
    st.builds(lambda s: {"AdditiveGaussianNoise": {"scale": {"range": [0, s]}}},
              st.integers(1, 40)),
    st.builds(lambda p, k: {"CropAndPad": {"percent": {"range": [-p / 4, p / 4]}, "keep_size": k}},
              NUMBERS, st.booleans()),
    st.builds(lambda s: {"Resize": {"size": s}}, st.integers(8, 24)),
    st.builds(lambda s: {"Cutout": {"size": s, "squared": False}},
              NUMBERS.map(lambda n: 0.1 + n / 2)),
    st.just("AddToHueAndSaturation").map(lambda name: {name: {"value": {"range": [-30, 30]}}}),
    st.builds(lambda c: {"pillike.Autocontrast": {"cutoff": c}}, st.integers(0, 20)),
)  # fmt: skip
TREES = st.lists(
    st.recursive(
        LEAVES,
        lambda inner: st.one_of(
            st.builds(lambda c, r: {"Sequential": {"children": c, "random_order": r}},
                      st.lists(inner, min_size=1, max_size=3), st.booleans()),
            st.builds(lambda c: {"OneOf": {"children": c}},
                      st.lists(inner, min_size=1, max_size=3)),
            st.builds(lambda p, c: {"Sometimes": {"p": p, "then_list": [c]}}, NUMBERS, inner),
        ),
        max_leaves=4,
    ),
    min_size=1,
    max_size=3,
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One `featurize` into the cache; `staged`: after an `augment`."""

    images: int  # how many of the dataset are there by then
    name: str  # of the policy file, or "" for the view none
    tree: list[Any]
    draw: int
    staged: bool
    options: Options


OPTIONS = st.fixed_dictionaries(
    {"input_size": st.sampled_from([32, 40]), "shard_rows": st.integers(1, 8)},
    optional={
        "crop": st.sampled_from([0.5, 0.875, 1.0]),
        "interpolation": st.sampled_from(sorted(backbones.INTERPOLATIONS)),
        "seed": st.integers(0, 2),
    },
)
RUNS = st.lists(
    st.builds(Run, st.integers(1, 12), st.sampled_from([*NAMES, *NAMES, ""]), TREES,
              st.integers(1, 3), st.booleans(), OPTIONS),
    min_size=1,
    max_size=4,
)  # fmt: skip
# Pictures by number: two with the same number are copies; BROKEN is no picture.
BROKEN = 9
PICTURES = st.lists(st.integers(0, BROKEN), min_size=3, max_size=12)


def configurations(writer: Writer, size: int, folder: Path) -> Tally:
    """Random images, policies and settings, run one after the other into one cache: every row that
    is had from it equals the one that is computed past it. The rows of OpenVINO do not depend on
    their neighbours, so the same bytes are asked for."""
    bad: list[str] = []
    tried = rows = 0

    @hypothesis.settings(
        max_examples=size,
        database=None,
        deadline=None,
        derandomize=True,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(PICTURES, RUNS)
    def trial(pictures: list[int], runs: list[Run]) -> None:
        nonlocal tried, rows
        place = folder / f"{tried}"
        tried += 1
        wrong: list[str] = []
        for run in runs:
            options = _prepared(pictures, run, place)
            if run.staged and run.name and writer.name == "ours":
                names = ("data", "cache", "policy", "seed", "workers", "shard_rows")
                _must(writer, "augment", {n: options[n] for n in names if n in options})
            try:
                _must(writer, "featurize", options)
                expected = _directly(options)
                found = _held(writer, options, expected)
                rows += len(expected)
                differ = [item for item in expected if found.get(item) != expected[item]]
            except NOTICED as error:
                wrong.append(f"{type(error).__name__}: {error}"[:200])
                continue
            if differ:
                wrong.append(f"{len(differ)} of {len(expected)} rows are missing or others")
        if wrong:
            bad.append(f"{pictures} {runs}: {'; '.join(wrong)}")
        shutil.rmtree(place)

    with networks_loaded_once():
        trial()
    said = (
        f"{tried} random configurations, {rows} rows compared with rows computed past the cache: "
        f"{len(bad)} configurations with a wrong or missing row"
    )
    return Tally(tried, len(bad), said, tuple(bad[:5]))


def _prepared(pictures: Sequence[int], run: Run, place: Path) -> Options:
    """Write the dataset and the policy of a run: the options of its command."""
    data = place / "data" / "cat"
    data.mkdir(parents=True, exist_ok=True)
    for position, number in enumerate(pictures[: run.images]):
        # Later pictures come before earlier ones in the listing.
        (data / f"{99 - position}.png").write_bytes(_picture(number))
    options = {"data": place / "data", "cache": place / "cache", "backbone": NETWORK,
               "engine": "openvino", "workers": 0, "policy": ["none"]}  # fmt: skip
    if run.name:
        policy = place / f"{run.name}.yaml"
        policy.write_text(yaml.safe_dump({"augmenters": run.tree}))
        options["policy"] = [f"{policy}_{run.draw}"]
    return options | run.options


@functools.cache
def _picture(number: int) -> bytes:
    if number == BROKEN:
        return b"no picture"
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 256, (*rng.integers(8, 20, 2), 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, ("PNG", "JPEG", "BMP")[number % 3])
    return out.getvalue()


def _must(writer: Writer, verb: str, options: Options) -> None:
    code, text = run_command(writer, verb, options)
    if code not in (0, SOME_FAILED):
        raise RuntimeError(f"{verb} gave {code}: {text[-200:]}")


def _directly(options: Options) -> dict[bytes, bytes]:
    """item -> vector of every picture that is one, from its bytes alone and past every cache."""
    views._built.cache_clear()
    view = _view(options)
    given = {name: options.get(name) for name in ("input_size", "crop", "interpolation")}
    network = backbones.load_backbone(NETWORK, None, **given)
    engine = engines.open_engine(network, "openvino", "f32")
    found: dict[bytes, np.ndarray] = {}
    for path in options["data"].glob("*/*"):
        data = path.read_bytes()
        item = hashlib.sha256(data).digest()
        with contextlib.suppress(Undecodable):
            found[item] = network.preprocess(view.picture(decode(data), item))
    if not found:
        return {}
    vectors = run_rows(engine, np.stack(list(found.values())))
    return {item: row.tobytes() for item, row in zip(found, vectors, strict=True)}


def _view(options: Options) -> View:
    if options["policy"] == ["none"]:
        return View(None)
    name, _, draw = options["policy"][0].rpartition("_")
    return View(find_policy(name), int(draw), options.get("seed", 0))


def _held(writer: Writer, options: Options, items: Iterable[bytes]) -> dict[bytes, bytes]:
    """The rows that the cache gives for these options; KeyError for one that it does not hold."""
    if writer.name != "ours":
        return writer.rows(options["cache"] / f"{_view(options).name}_{NETWORK}")
    request = resolved(options)
    space = request.vector_space(request.views[0], request.backbones[0])
    vectors, fine = space.vectors(list(items))
    rows = zip(items, vectors, fine, strict=True)
    return {item: row.tobytes() for item, row, right in rows if right}
