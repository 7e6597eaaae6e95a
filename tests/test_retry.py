"""Retry: rows of images that a decoder of yesterday refused, and one of today does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurecache.errors import BadInput
from featurecache.features.store import Cache
from featurecache.images import views
from featurecache.images.decode import Undecodable, decode
from featurecache.stages.cache.augment import augment
from featurecache.stages.cache.featurize import featurize
from featurecache.stages.cache.ls import ls
from featurecache.stages.cache.retry import retry
from featurecache.stages.cache.verify import verify

pytestmark = pytest.mark.usefixtures("load_once")


@pytest.fixture
def data(tmp_path: Path, write_dataset: Callable[..., Path]) -> Path:
    root = write_dataset(tmp_path / "data", {"cat": 6, "dog": 6})
    (root / "cat" / "torn.png").write_bytes(b"no picture")
    return root


def fill(data: Path, cache: Path, tiny: dict[str, Any]) -> None:
    augment(data, policy="color_1", cache=cache, workers=0)
    featurize(data, policy=["none", "spatial_1"], cache=cache, **tiny)


@pytest.fixture
def old(data: Path, tmp_path: Path, tiny: dict[str, Any]) -> Path:
    """A cache made with a decoder that refused two good images."""
    refused = {(data / "cat" / "002.png").read_bytes(), (data / "dog" / "004.png").read_bytes()}

    def worse(encoded: bytes, jpeg_side: int | None) -> np.ndarray:
        if encoded in refused:
            raise Undecodable("not supported yet")
        return decode(encoded, jpeg_side)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(views, "decode", worse)
        fill(data, tmp_path / "old", tiny)
    return tmp_path / "old"


def test_what_can_be_decoded_now_is_mended(
    data: Path, old: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    made = featurize(data, policy="none", cache=old, **tiny)
    assert (made.computed, len(made.failed)) == (0, 3)  # it never tries a failed row again
    found = retry(data, cache=old, engine="torch-cpu")
    assert (found.failed, found.mended) == (9, 6)
    assert [row["path"] for row in found.left] == ["cat/torn.png"]
    assert len(found.spaces) == 3
    assert verify(old).bad == []
    fill(data, tmp_path / "new", tiny)
    mended = {s.name: s for s in Cache(old).spaces()}
    for space in Cache(tmp_path / "new").spaces():
        again = mended[space.name]
        assert again.failures(again.rows).keys() == space.failures(space.rows).keys()
        if space.backbone is None:
            assert ls(old)[0]["root_hash"] == ls(tmp_path / "new")[0]["root_hash"]
        else:  # torch-cpu's last bits move with the neighbours in a batch (law 5)
            items = list(space.rows)
            np.testing.assert_allclose(
                again.vectors(items)[0], space.vectors(items)[0], rtol=1e-4, atol=1e-5
            )


def test_a_second_time_there_is_nothing_to_mend(data: Path, old: Path) -> None:
    retry(data, cache=old, engine="torch-cpu")
    before = ls(old)
    found = retry(data, cache=old, engine="torch-cpu")
    assert (found.failed, found.mended, found.spaces) == (3, 0, [])
    assert ls(old) == before


def test_failures_of_other_datasets_are_left_alone(
    old: Path, tmp_path: Path, write_dataset: Callable[..., Path]
) -> None:
    other = write_dataset(tmp_path / "other", {"a": 2}, seed=9)
    found = retry(other, cache=old)
    assert (found.failed, found.mended, found.left) == (0, 0, [])
    with pytest.raises(BadInput, match="no cache at"):
        retry(other, cache=tmp_path / "none")
