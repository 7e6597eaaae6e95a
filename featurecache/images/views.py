"""Views: a policy and a draw, applied to images.

Law 1, "A view depends on its image alone", is implemented here and in policies.py.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from featurecache import keys
from featurecache.errors import BadInput, FeatureCacheError, SourceChanged, UnknownName
from featurecache.images.decode import Undecodable, decode
from featurecache.images.picture_checks import UnfitImage
from featurecache.images.policies import Policy, find_policy, shipped
from featurecache.images.samples import Sample
from featurecache.images.transforms import TRIAL_SIDES, Part
from featurecache.images.view_names import ViewName, policy_files

GENERATED = "gen:"  # begins the name of a view that a training draws from a generator
CacheViews = Callable[[], Iterable[tuple[str, keys.Json]]]  # the names and keys of a cache's views


@dataclass(frozen=True)
class View:
    """An independent random realisation (`draw`) of a policy over all images. The view `none` has
    no policy. `jpeg_side` belongs to the decode rule of the images (decode.py)."""

    policy: Policy | None
    draw: int = 0
    seed: int = 0
    jpeg_side: int | None = None

    @property
    def policy_name(self) -> str:
        return self.policy.name if self.policy else "none"

    @property
    def name(self) -> str:
        """The name in the cache and in tables: `color_1`, or `none`."""
        return str(ViewName(self.policy_name, self.draw if self.policy else None))

    @property
    def option_name(self) -> str:
        """The value of --view that finds this view: a policy file is named by its path."""
        source = self.policy.source if self.policy else None
        return self.name if source is None else str(ViewName(str(source), self.draw))

    def picture_key(self) -> keys.Json:
        """The key of the space of its pictures."""
        return keys.picture_key(self.key(), self.jpeg_side)

    def vector_key(self, backbone: keys.Json, precision: str) -> keys.Json:
        """The key of the space of its vectors; `backbone` is the backbone's part."""
        return keys.vector_key(self.key(), backbone, precision, self.jpeg_side)

    def key(self) -> keys.Json | None:
        """The view's part of a space key: the policy's key, draw and seed; None for `none`."""
        if self.policy is None:
            return None
        return {"policy": self.policy.key(), "draw": self.draw, "seed": self.seed}

    def check(self) -> None:
        """Build and try the policy, to report errors before any work starts. Raises BadInput."""
        if self.policy is not None:
            with contextlib.suppress(Undecodable):  # too large: reported per image
                try:
                    self._try()
                except BadInput:
                    raise
                except FeatureCacheError as error:
                    raise BadInput(str(error)) from error

    def _try(self) -> None:
        """Make a small picture, or a larger one if the policy needs one to crop."""
        for side in TRIAL_SIDES:
            try:
                self.picture(np.zeros((side, side, 3), np.uint8), bytes(32))
                return
            except UnfitImage:
                if side == TRIAL_SIDES[-1]:
                    raise

    def picture(self, pixels: np.ndarray, item: bytes) -> np.ndarray:
        """The view of one decoded image: (H, W, 3) uint8 in, (H', W', 3) uint8 out.

        `item` is the SHA-256 of the image's encoded bytes. The result is a pure function of the
        arguments and the view: no state, other image, worker or order affects it. Raises
        Undecodable if a step of the policy would make the picture too large.
        """
        if self.policy is None:
            return pixels
        augmentation, fingerprint = _built(self)
        try:
            return augmentation.run(pixels, fingerprint + item, item)
        except FeatureCacheError:
            raise
        except Undecodable as error:
            raise type(error)(f"view {self.name}: {error}") from error


@functools.lru_cache(maxsize=64)
def _built(view: View) -> tuple[Part, bytes]:
    """The built tree and the fingerprint of a view, cached per process."""
    assert view.policy is not None
    return view.policy.build(), keys.canonical(view.key())


def original(sample: Sample, item: bytes, jpeg_side: int | None = None) -> np.ndarray:
    """The decoded pixels of a sample, (H, W, 3) uint8; `jpeg_side` is that of `decode`.

    Raises SourceChanged if the hash of its bytes is no longer `item`, and Undecodable if the bytes
    are not a picture.
    """
    try:
        data = sample.read()
    except OSError as error:
        raise SourceChanged(sample.id, f"can no longer be read ({error.strerror})") from error
    if hashlib.sha256(data).digest() != item:
        raise SourceChanged(sample.id, "was edited since it was listed")
    return decode(data, jpeg_side)


def view_of_key(key: keys.Json, name: str) -> View:
    """The view that a space's key describes; `name` is the view's name."""
    view, jpeg_side = key["view"], keys.jpeg_side(key)
    if view is None:
        return View(None, jpeg_side=jpeg_side)
    return View(_policy(view, name), view["draw"], view["seed"], jpeg_side)


def _policy(key: keys.Json, name: str) -> Policy:
    """The policy in a view's part of a key."""
    return Policy(ViewName.parse(name).policy, key["policy"]["tree"])


def find_view(name: str, seed: int = 0, cache_views: CacheViews = tuple) -> View:
    """The view called `none`, `NAME_N`, or `NAME` (draw 1). NAME is that of a shipped policy, the
    path of a YAML file, or the name of a policy in the views that a cache holds.

    Raises BadInput for an unknown policy or a draw below 1.
    """
    if not isinstance(name, str):
        raise BadInput(f"view {name!r}: expected a single name, such as color_1")
    if name == "none":
        return View(None)
    if name.startswith(GENERATED):
        raise BadInput(
            f"view {name}: a training that names it in its schedule draws its vectors, so there is "
            "nothing to compute, to store or to measure here; of a dataset of generated images "
            "give the folder as --data"
        )
    parts = ViewName.parse(name).with_draw()
    if not parts.draw:
        raise BadInput(f"view {name!r}: draws are counted from 1, as in {parts.policy}_1")
    try:
        policy = find_policy(parts.policy)
    except UnknownName:
        policy = _held_policy(parts, seed, cache_views)
    return View(policy, parts.draw, seed)


def _held_policy(view: ViewName, seed: int, cache_views: CacheViews) -> Policy:
    """The policy of this name in the views of a cache, which hold what its file said.

    Where the file was edited in between, it is the policy of the very view. Raises UnknownName, and
    BadInput if several policies have the name.
    """
    policies: dict[str, Policy] = {}
    exact: dict[str, Policy] = {}
    names = set()
    for name, key in cache_views():
        policy = _policy(key, name)
        names.add(policy.name)
        if policy.name == view.policy:
            policies[keys.digest(policy.tree)] = policy
            if (key["draw"], key["seed"]) == (view.draw, seed):
                exact[keys.digest(policy.tree)] = policy
    matches = list((exact or policies).values())
    if not matches:
        files = [str(ViewName(file, view.draw)) for file in policy_files(view.policy)]
        raise UnknownName("policy", view.policy, [*shipped(), "none", *names, *files])
    if len(matches) > 1:
        raise BadInput(
            f"view {view}: the cache holds views of {len(matches)} policies called {view.policy}; "
            f"name the policy's file instead, as in {view.policy}.yaml_{view.draw}"
        )
    return matches[0]
