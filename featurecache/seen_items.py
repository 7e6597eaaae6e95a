"""The images that views, datasets and vectors come from beside their own (law 8): those that
generators were fitted on, those of style folders, and those that networks were trained on. Joins
images/, features/ and heads/.

A cache notes them for what it holds, in `generators/DIGEST.json`, `styles/DIGEST.json` and
`networks/DIGEST.json`, so that a training that finds a view or vectors in the cache knows them,
wherever the run or the style folder is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import pydantic

from featurecache import keys
from featurecache.errors import BadInput
from featurecache.features.space_files import Packed
from featurecache.features.store import Cache
from featurecache.features.trained_networks import DESCRIPTION as NETWORK
from featurecache.features.trained_networks import trained_network
from featurecache.generator_files import (
    DESCRIPTION,
    INDEX,
    damaged_dataset,
    read_description,
    read_generated,
)
from featurecache.heads.trained_items import FILE, TrainedItems, root_of
from featurecache.images import styles
from featurecache.images.generator_nodes import digests, has_partners
from featurecache.images.views import View
from featurecache.items import unpacked
from featurecache.json_files import Hex64, Open, damaged_run, read_model
from featurecache.storage.store import Store
from featurecache.storage.stored_file import StoredFile


class ItemSource(NamedTuple):
    """A view, a dataset, a network or a head, such as `view winter_1`, and what it has images from:
    its generators, its style folders, or its training."""

    name: str
    kind: Literal["generator", "style", "network", "head"] = "generator"


# The images that the generators of a source were fitted on, that its style folders have, or that
# the network or the head was trained on.
Fitted = Mapping[ItemSource, frozenset[bytes]]
_MAX_NOTE = 1 << 30  # bytes; 64 per image
FIT_AGAIN = "fit the generator again"  # what to do about a damaged list of its images


class GeneratorNote(Open):
    """The folder of a generator, the digest of its tensors, and the images that it was fitted on,
    sorted."""

    run: str
    weights: Hex64
    items: Annotated[Packed, pydantic.Field(min_length=32)]


class NetworkNote(Open):
    """The run of a network, the digest of its tensors, and the images that it was trained on,
    sorted: none if only a head was trained."""

    run: str
    weights: Hex64
    items: Packed


class StyleNote(Open):
    """The images of a style folder, sorted; their digest is the name of the note."""

    items: Annotated[Packed, pydantic.Field(min_length=32)]


def note_sources(cache: Cache, views: Iterable[View]) -> None:
    """Write the notes of those generators and styles of the views whose folders are known."""
    for view in views:
        for digest, style in (view.policy.styles if view.policy else {}).items():
            content = {"items": b"".join(image.item for image in style).hex()}
            cache.store.make_folder("styles")
            cache.store.put_if_absent(f"styles/{digest}.json", keys.canonical(content) + b"\n")
        for digest, folder in (view.policy.generators if view.policy else {}).items():
            _note_run(cache, "generators", digest, folder, _items_in)


def note_networks(cache: Cache, runs: Mapping[str, Path]) -> None:
    """Write the notes of networks that were trained here: their run folders by the digest of their
    tensors. Raises DamagedRun."""
    for digest, run in runs.items():
        _note_run(cache, "networks", digest, run, items_of_network)


def _note_run(
    cache: Cache, kind: str, digest: str, run: Path, items_in: Callable[[Path], set[bytes]]
) -> None:
    """Write the note of a run, unless the cache has one of the same tensors."""
    name = f"{kind}/{digest}.json"
    if not cache.store.exists(name):
        items = b"".join(sorted(items_in(run)))
        note = {"run": str(run), "weights": digest, "items": items.hex()}
        cache.store.make_folder(kind)
        cache.store.put_if_absent(name, keys.canonical(note) + b"\n")


def fitted_items(cache: Cache, views: Mapping[str, View]) -> Fitted:
    """The images that the generators of these views were fitted on, and those of their styles.
    Raises BadInput if they are unknown."""
    fitted = {}
    for name, view in views.items():
        tree = view.policy.tree if view.policy else []
        if made_by := digests(tree):
            items = (_items(cache, digest, view) for digest in made_by)
            fitted[ItemSource(f"view {name}")] = frozenset().union(*items)
        if borrowed := styles.digests(tree):
            items = (_style_items(cache, digest, view) for digest in borrowed)
            fitted[ItemSource(f"view {name}", "style")] = frozenset().union(*items)
    return fitted


def fitted_by_datasets(folders: Iterable[str]) -> Fitted:
    """The images that the generators of the datasets in these folders were fitted on."""
    fitted = {folder: items_of_dataset(Path(folder)).common_items for folder in folders}
    return {
        ItemSource(f"dataset {folder}"): frozenset(item.tobytes() for item in items)
        for folder, items in fitted.items()
    }


def with_folders(store: Store, view: View) -> View:
    """A view from the key of the cache in a store, with the folders of its generators that the
    cache notes."""
    if view.policy is None or view.policy.generators or not digests(view.policy.tree):
        return view
    folders = {
        digest: Path(note.run)
        for digest in digests(view.policy.tree)
        if (note := _note(store, digest)) is not None
    }
    return replace(view, policy=replace(view.policy, generators=folders))


def _note(store: Store, digest: str) -> GeneratorNote | None:
    file = StoredFile(store, f"generators/{digest}.json")
    return read_model(file, GeneratorNote, _MAX_NOTE, damaged_run) if file.exists() else None


def refuse_seen(fitted: Fitted, items: Iterable[bytes], images: str) -> None:
    """Raise BadInput if a generator was fitted on some of these images, which are `images`, a style
    folder has some, or a network or a head was trained on some."""
    wanted = set(items) if fitted else set()
    for source, seen in fitted.items():
        count = len(wanted & seen)
        if count and source.kind in ("network", "head"):
            raise BadInput(
                f"{source.name}: it was trained on {count:,} of the {len(wanted):,} {images}, so "
                "the accuracy would be too high; validate on the images that its training held out "
                "(with the same `validation` and `seed`), or on a split that it has not seen"
            )
        if count and source.kind == "style":
            raise BadInput(
                f"{source.name}: its style folder has {count:,} of the {len(wanted):,} {images}, "
                "so the accuracy would be too high; name a folder of other images"
            )
        if count:
            remedy = "train each fold with its own (validation: {folds: 5, fold: 1})"
            raise leak(source.name, count, len(wanted), images, remedy)


def refuse_unseen(fitted: Fitted, views: Mapping[str, View], items: Iterable[bytes]) -> None:
    """Raise BadInput if a view has a generator that takes two images of a class, and does not know
    the classes of some of these images, which are trained on in the view."""
    wanted = set(items)
    for name, view in views.items():
        seen, policy = fitted.get(ItemSource(f"view {name}"), frozenset()), view.policy
        if policy is not None and has_partners(policy.tree) and (count := len(wanted - seen)):
            raise BadInput(
                f"view {name}: its generator takes two images of a class, and was not trained on "
                f"{count:,} of the {len(wanted):,} training images; train it on all of them "
                "(validation: val)"
            )


def leak(source: str, count: int, total: int, images: str, remedy: str) -> BadInput:
    """The error about a view or a dataset whose generator was fitted on `count` of the `total`
    images to judge by (law 8). `remedy` says how to use one generator per fold."""
    return BadInput(
        f"{source}: its generator was fitted on {count:,} of the {total:,} {images}, so the "
        "accuracy would be too high; fit one generator per fold (validation: {folds: 5} in its "
        f"configuration) and {remedy}, or validate on a split that it has not seen"
    )


def _items(cache: Cache, digest: str, view: View) -> set[bytes]:
    assert view.policy is not None
    if digest in view.policy.generators:
        return _items_in(view.policy.generators[digest])
    note = _note(cache.store, digest)
    if note is None:
        raise BadInput(
            f"view {view.name}: the cache does not say which images its generator {digest[:16]} "
            f"was fitted on; name the policy's file instead, as in {view.policy_name}.yaml_1"
        )
    return set(unpacked(note.items))


def _style_items(cache: Cache, digest: str, view: View) -> set[bytes]:
    assert view.policy is not None
    if digest in view.policy.styles:
        return {image.item for image in view.policy.styles[digest]}
    file = StoredFile(cache.store, f"styles/{digest}.json")
    if not file.exists():
        raise BadInput(
            f"view {view.name}: the cache does not say which images its style {digest[:16]} has; "
            f"name the policy's file instead, as in {view.policy_name}.yaml_1"
        )
    note = read_model(file, StyleNote, _MAX_NOTE, damaged_run)
    items = unpacked(note.items)
    if styles.digest_of(items) != digest:
        remedy = "delete it, and run augment or featurize with the policy's file again"
        raise damaged_run(Path(str(file)), "not the images of this style", remedy)
    return set(items)


def items_of_generator(folder: Path) -> TrainedItems:
    """The images of a generator, which has their root hash in its description: it was fitted on
    those of fold 0. Raises DamagedRun."""
    items = TrainedItems.load(folder)
    if items is None:
        raise damaged_run(folder / FILE, "missing", FIT_AGAIN)
    if root_of(items.common_items) != read_description(folder).items:
        raise damaged_run(folder / FILE, f"not the images that {DESCRIPTION} describes", FIT_AGAIN)
    return items


def items_of_dataset(folder: Path) -> TrainedItems:
    """The images of the generator of a dataset, which has their root hash in its index. Raises
    DamagedRun."""
    items = TrainedItems.load(folder)
    if items is None:
        raise damaged_dataset(folder / FILE, "missing")
    if root_of(items.common_items) != read_generated(folder).generator.items:
        raise damaged_dataset(folder / FILE, f"not the images that {INDEX} describes")
    return items


def items_of_network(folder: Path) -> set[bytes]:
    """The images that the tensors of the network in a run folder were trained on. Raises
    DamagedRun."""
    described = trained_network(str(folder))
    root = None if described is None else described.items
    if root == root_of(np.empty((0, 32), np.uint8)):
        return set()
    items = TrainedItems.load(folder)
    if items is None:
        raise damaged_run(folder / FILE, "missing", "copy it from the run, or train again")
    if root is not None and root_of(items.common_items) != root:
        raise damaged_run(folder / FILE, f"not the images that {NETWORK} describes")
    return {row.tobytes() for row in items.common_items}


def noted_network(store: Store, digest: str) -> set[bytes] | None:
    """The images that the network with these tensors was trained on, if the cache notes it. Raises
    DamagedRun."""
    file = StoredFile(store, f"networks/{digest}.json")
    if not file.exists():
        return None
    return set(unpacked(read_model(file, NetworkNote, _MAX_NOTE, damaged_run).items))


def _items_in(folder: Path) -> set[bytes]:
    return {row.tobytes() for row in items_of_generator(folder).common_items}
