"""Generators in policies: keys, pixels, bad input, and the same bytes for any number of workers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import featurecache
from featurecache import generated_pictures, keys  # the former installs generators in policies
from featurecache.errors import BadInput
from featurecache.features.store import Cache
from featurecache.images import views
from featurecache.images.decode import Undecodable
from featurecache.images.views import View, find_view
from tests.samplers import write_generator

ITEM = bytes(range(32))
assert generated_pictures


def view(path: Path, run: Path, text: str = "generator: {run: RUN}", draw: int = 1) -> View:
    path.write_text(text.replace("RUN", str(run)))
    return find_view(f"{path}_{draw}")


def pixels(seed: int = 0, size: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (size, size, 3), np.uint8)


def test_the_key_has_the_tensors_and_not_the_path(tmp_path: Path) -> None:
    first = view(tmp_path / "a.yaml", write_generator(tmp_path / "run")).key()
    moved = view(tmp_path / "b.yaml", write_generator(tmp_path / "moved")).key()
    assert first == moved and str(tmp_path) not in keys.canonical(first).decode()
    other = view(tmp_path / "c.yaml", write_generator(tmp_path / "other", seed=1)).key()
    assert [d.partition(":")[0] for d in keys.differences(first, other)] == [
        "policy.tree.0.generator.weights"
    ]
    weaker = view(tmp_path / "d.yaml", tmp_path / "run", "generator: {run: RUN, strength: 0.5}")
    assert keys.differences(first, weaker.key()) == ["policy.tree.0.generator.strength: 1.0 / 0.5"]
    assert first is not None and first["policy"]["own"] == {"generator": 1}


def test_strength_mixes_and_a_view_depends_on_its_image_alone(tmp_path: Path) -> None:
    run = write_generator(tmp_path / "run")
    none = view(tmp_path / "a.yaml", run, "generator: {run: RUN, strength: 0}")
    full = view(tmp_path / "b.yaml", run)
    half = view(tmp_path / "c.yaml", run, "generator: {run: RUN, strength: 0.5}")
    picture = full.picture(pixels(), ITEM)
    assert (none.picture(pixels(), ITEM) == pixels()).all()
    mean = (pixels() + picture.astype(float)) / 2
    assert np.abs(half.picture(pixels(), ITEM) - mean).max() <= 1
    full.picture(pixels(1), ITEM)
    torch.rand(3)
    assert (full.picture(pixels(), ITEM) == picture).all()


def test_a_picture_is_made_in_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    from_numpy = torch.from_numpy

    def spy(array: np.ndarray) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return from_numpy(array)

    styled = view(tmp_path / "one.yaml", write_generator(tmp_path / "run", seed=9))
    monkeypatch.setattr(torch, "from_numpy", spy)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        styled.picture(pixels(), ITEM)
        assert set(seen) == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_a_node_among_augmenters_is_drawn_anew_in_each_draw(tmp_path: Path) -> None:
    text = """augmenters:
  - Fliplr: {p: 0.5}
  - Sometimes:
      p: 0.9
      then_list:
        - generator: {run: RUN, strength: {range: [0.1, 1.0]}}
  - v2.Resize: {size: [16, 16]}
"""
    run = write_generator(tmp_path / "run")
    made = [view(tmp_path / "a.yaml", run, text, n).picture(pixels(), ITEM) for n in range(1, 5)]
    assert len({picture.tobytes() for picture in made}) == 4
    assert made[0].shape == (16, 16, 3)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("generator: {run: nowhere}", "nowhere: not a generator"),
        ("generator: {strength: 1}", "expected {run: FOLDER}"),
        ("generator: {run: RUN, strenght: 1}", "a generator has `run` and `strength`"),
        ("generator: {run: RUN, strength: 2}", "does not take these values"),
        ("generator: {run: RUN}\naugmenters: [Fliplr]", "expected a list `augmenters`, or"),
        ("augmenters:\n- Fliplr\n- generator: {run: folds}", "name one of fold_1 in it"),
        ("generator: {run: sampler}", "is a sampler, and a policy needs"),
    ],
)
def test_bad_input_names_the_file_and_the_line(
    text: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_generator(tmp_path / "folds/fold_1")
    write_generator(tmp_path / "sampler", kind="sampler")
    with pytest.raises(BadInput, match=reason) as error:
        view(Path("a.yaml"), write_generator(tmp_path / "run"), text).check()
    assert str(error.value).startswith("a.yaml") and "\n" not in str(error.value)


def test_a_damaged_or_changed_generator_is_refused_before_work(
    tmp_path: Path, small_data: Path
) -> None:
    run = write_generator(tmp_path / "run")
    wanted = view(tmp_path / "a.yaml", run)
    shutil.copy(write_generator(tmp_path / "b", seed=5) / "generator.safetensors", run)
    with pytest.raises(BadInput, match=r"not the tensors that generator\.json describes"):
        featurecache.augment(small_data, policy=f"{tmp_path / 'a.yaml'}_1", cache=tmp_path / "c")
    write_generator(run, seed=5)
    with pytest.raises(BadInput, match="the generator has changed since"):
        wanted.check()


def test_another_size_is_refused_with_the_remedy(tmp_path: Path, small_data: Path) -> None:
    large = view(tmp_path / "a.yaml", write_generator(tmp_path / "run", size=16))
    with pytest.raises(Undecodable, match=r"12x12 pixels, but the generator takes 16x16; put v2"):
        large.picture(pixels(), ITEM)
    with pytest.raises(BadInput, match="but the generator takes 16x16"):
        featurecache.augment(small_data, policy=f"{tmp_path / 'a.yaml'}_1", cache=tmp_path / "c")
    assert not (tmp_path / "c").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("load_once")
def test_the_same_bytes_for_any_number_of_workers_and_from_stored_pictures(
    tmp_path: Path, small_data: Path, tiny: dict[str, Any]
) -> None:
    run = write_generator(tmp_path / "run")
    name = f"{tmp_path / 'styled.yaml'}_2"
    view(tmp_path / "styled.yaml", run, "generator: {run: RUN, strength: {range: [0, 1]}}")
    hashes = set()
    for workers in (2, 0):
        cache = tmp_path / f"cache{workers}"
        featurecache.augment(small_data, policy=name, cache=cache, workers=workers)
        (space,) = Cache(cache).spaces()
        hashes.add(space.root_hash)
    assert len(hashes) == 1
    stored = featurecache.featurize(small_data, cache=cache, **tiny)  # none and the stored view
    fresh = featurecache.featurize(small_data, policy=name, cache=tmp_path / "f", **tiny)
    assert {s["view"] for s in stored.spaces} == {"none", "styled_2"}
    assert fresh.spaces[0]["root_hash"] in {s["root_hash"] for s in stored.spaces}
    # From the cache alone the view is known by its name, and its generator while its run is there.
    named = featurecache.augment(small_data, policy="styled_3", cache=cache, limit=2, workers=0)
    assert named.computed == 2 and json.dumps(named.spaces)
    check = {"recompute": 2, "data": small_data, "engine": "torch-cpu"}
    for drift in featurecache.verify(cache, **check).drift:
        assert (drift.rows, drift.identical, drift.note) == (2, 2, "")
    run.rename(tmp_path / "elsewhere")
    views._built.cache_clear()
    notes = {d.view: d.note for d in featurecache.verify(cache, **check).drift}
    assert notes["none"] == "" and f"its run is not at {run}; put it back" in notes["styled_2"]


SCHEDULE = """
backbone: efficientnet_lite0
head: {hidden: [4]}
validation: val
phases: [{views: {none: 0.5, styled.yaml_1: 0.5}, epochs: 1}]
"""


@pytest.mark.slow
@pytest.mark.usefixtures("load_once")
def test_a_report_shows_the_draws_of_a_generator_as_of_any_policy(
    tmp_path: Path, small_data: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    view(Path("styled.yaml"), write_generator(tmp_path / "run"))
    given: dict[str, Any] = {"data": small_data, "cache": "cache"}
    featurecache.featurize(policy=["none", "styled.yaml_1"], **given, **tiny)
    Path("s.yaml").write_text(SCHEDULE)
    run = featurecache.train_head("s.yaml", out="head", device="cpu", **given).run
    Path("styled.yaml").unlink()  # the cache says what was in it, and where its generator is
    assert featurecache.report(run, out="r.html", **given).notes == []
    assert "<b><bdi>styled</bdi></b>: originals, then draw 1" in Path("r.html").read_text()


KILLED = """
import gc, os, signal, sys
import featurecache
from featurecache import generated_pictures
from featurecache.images.views import find_view
data, policy, cache = sys.argv[1:]

def augment(moment):
    def kill(done, total, what):
        if what.startswith("augment") and done >= moment:
            os.kill(os.getpid(), signal.SIGKILL)
    featurecache.augment(
        data, policy=policy, cache=cache, workers=0, shard_rows=4, progress=kill
    )

find_view(policy).check()  # imports, once, what every child needs
gc.freeze()
for moment in (0, 1, 5, 9, 13):  # rows of its own
    child = os.fork()
    if child == 0:
        augment(moment)
        os._exit(1)  # it was not killed
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
"""


@pytest.mark.slow
def test_augment_is_killed_at_several_moments_and_ends_with_the_same_bytes(
    tmp_path: Path, small_data: Path
) -> None:
    view(tmp_path / "styled.yaml", write_generator(tmp_path / "run"))
    policy, given = f"{tmp_path / 'styled.yaml'}_1", {"shard_rows": 4, "workers": 0}
    words = [sys.executable, "-c", KILLED, small_data, policy, tmp_path / "killed"]
    subprocess.run(words, check=True, timeout=120)
    resumed = featurecache.augment(small_data, policy=policy, cache=tmp_path / "killed", **given)
    whole = featurecache.augment(small_data, policy=policy, cache=tmp_path / "whole", **given)
    assert resumed.hits > 0 and resumed.computed + resumed.hits == whole.computed == 48
    assert resumed.spaces[0]["root_hash"] == whole.spaces[0]["root_hash"]


def test_a_network_is_not_trained_through_a_generator_of_another_size(
    tmp_path: Path, small_data: Path
) -> None:
    view(tmp_path / "a.yaml", write_generator(tmp_path / "run", size=16))
    (tmp_path / "net.yaml").write_text(
        "network: {name: test_efficientnet, input_size: 32}\nepochs: 1\nvalidation: val\n"
        f"views: {tmp_path / 'a.yaml'}\n"
    )
    where: dict[str, Any] = {"data": small_data, "cache": tmp_path / "c", "device": "cpu"}
    for train in (
        lambda: featurecache.train_network(tmp_path / "net.yaml", out=tmp_path / "net", **where),
        lambda: featurecache.worth(tmp_path / "net.yaml", runs=tmp_path / "runs", **where),
    ):
        with pytest.raises(BadInput, match="12x12 pixels, but the generator takes 16x16") as error:
            train()
        assert "\n" not in str(error.value)
    assert not any((tmp_path / name).exists() for name in ("c", "net", "runs"))
