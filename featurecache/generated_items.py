"""The images that the generators of views and datasets were fitted on (law 8): joins images/,
features/ and heads/.

A cache notes them for each generator whose views it holds, in `generators/DIGEST.json`, so that a
training that finds a view in the cache knows them, wherever the run of the generator is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import pydantic

from featurecache import keys
from featurecache.errors import BadInput
from featurecache.features.space_files import Packed
from featurecache.features.store import Cache
from featurecache.generator_files import INDEX, damaged_dataset, read_generated
from featurecache.heads.trained_items import FILE, TrainedItems, root_of
from featurecache.images.generator_nodes import digests, has_partners
from featurecache.images.views import View
from featurecache.json_files import Hex64, Open, damaged_run, read_model
from featurecache.storage.store import Store
from featurecache.storage.stored_file import StoredFile

# By view or dataset, such as `view winter_1`: the images that its generators were fitted on.
Fitted = Mapping[str, frozenset[bytes]]
_MAX_NOTE = 1 << 30  # bytes; 64 per image


class GeneratorNote(Open):
    """The folder of a generator, the digest of its tensors, and the images that it was fitted on,
    sorted."""

    run: str
    weights: Hex64
    items: Annotated[Packed, pydantic.Field(min_length=32)]


def note_generators(cache: Cache, views: Iterable[View]) -> None:
    """Write the notes of those generators of the views whose folders are known."""
    for view in views:
        for digest, folder in (view.policy.generators if view.policy else {}).items():
            name = f"generators/{digest}.json"
            if not cache.store.exists(name):
                items = b"".join(sorted(_items_in(folder)))
                note = {"run": str(folder), "weights": digest, "items": items.hex()}
                cache.store.make_folder("generators")
                cache.store.put_if_absent(name, keys.canonical(note) + b"\n")


def fitted_items(cache: Cache, views: Mapping[str, View]) -> Fitted:
    """The images that the generators of these views were fitted on. Raises BadInput if they are
    unknown."""
    fitted = {}
    for name, view in views.items():
        if view.policy is not None and (made_by := digests(view.policy.tree)):
            items = (_items(cache, digest, view) for digest in made_by)
            fitted[f"view {name}"] = frozenset().union(*items)
    return fitted


def fitted_by_datasets(folders: Iterable[str]) -> Fitted:
    """The images that the generators of the datasets in these folders were fitted on."""
    fitted = {folder: items_of_dataset(Path(folder)).common_items for folder in folders}
    return {
        f"dataset {folder}": frozenset(item.tobytes() for item in items)
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
    """Raise BadInput if a generator was fitted on some of these images, which are `images`."""
    wanted = set(items) if fitted else set()
    for source, seen in fitted.items():
        if count := len(wanted & seen):
            remedy = "train each fold with its own (validation: {folds: 5, fold: 1})"
            raise leak(source, count, len(wanted), images, remedy)


def refuse_unseen(fitted: Fitted, views: Mapping[str, View], items: Iterable[bytes]) -> None:
    """Raise BadInput if a view has a generator that takes two images of a class, and does not know
    the classes of some of these images, which are trained on in the view."""
    wanted = set(items)
    for name, view in views.items():
        seen, policy = fitted.get(f"view {name}", frozenset()), view.policy
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
    return {note.items[start : start + 32] for start in range(0, len(note.items), 32)}


def items_of_generator(folder: Path) -> TrainedItems:
    """The images of a generator: it was fitted on those of fold 0. Raises DamagedRun."""
    items = TrainedItems.load(folder)
    if items is None:
        raise damaged_run(folder / FILE, "missing", "fit the generator again")
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


def _items_in(folder: Path) -> set[bytes]:
    return {row.tobytes() for row in items_of_generator(folder).common_items}
