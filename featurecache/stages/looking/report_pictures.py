"""The pictures of a report: which images are shown, beside what heads said of them."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from featurecache import keys
from featurecache.errors import FeatureCacheError
from featurecache.features.spaces import Space
from featurecache.images.decode import Undecodable
from featurecache.images.samples import Sample, items_of
from featurecache.images.thumbnails import JPEG, jpeg, sheet, thumbnail
from featurecache.images.views import View, original, view_of_key
from featurecache.lookup.held_spaces import OTHER_VERSIONS, is_drawn_alike
from featurecache.runs.predictions import Predictions
from featurecache.runs.record import RunRecord
from featurecache.stages.studies.study_files import evenly_spaced, unread_notes
from featurecache.study import pages

THUMBNAIL = 96  # pixels
_TILE, _GAP = 96, 3  # of a contact sheet
_SHEET_IMAGES, _SHEET_DRAWS = 5, 4
_EXAMPLES = 4  # pictures of each of the best and worst classes


class Pictures:
    """Thumbnails of the images of a split, made when they are first asked for."""

    def __init__(self, asked: Predictions) -> None:
        self._asked = asked
        self._samples = {sample.id: sample for sample in asked.dataset.samples}
        self._made: dict[int, str] = {}

    def uri(self, place: int) -> str:
        """The picture of a row as a data URI; empty for an image that can't be had any more."""
        if place not in self._made:
            row = self._asked.rows[place]
            pixels = _pixels(self._samples[row.id], row.item)
            made = None if pixels is None else thumbnail(pixels, THUMBNAIL)
            self._made[place] = "" if made is None else pages.data_uri(made, JPEG)
        return self._made[place]

    def notes(self) -> list[str]:
        """How many of the pictures can't be had any more."""
        return unread_notes(sum(not uri for uri in self._made.values()))


def _pixels(sample: Sample, item: bytes) -> np.ndarray | None:
    """The decoded pixels of a sample; None if it can't be decoded, or if its file went or changed
    since its bytes were hashed: a card says so."""
    try:
        return original(sample, item)
    except (FeatureCacheError, Undecodable):
        return None


def wrong(asked: Predictions) -> list[int]:
    """The rows that at least one of the runs has wrong."""
    rights = np.array([asked.correct_mask(place) for place in range(len(asked.runs))])
    return [int(row) for row in np.flatnonzero(~rights.all(0))]


def of_each_class(wrong: Sequence[int], asked: Predictions, most: int) -> list[int]:
    """At most so many of the wrong rows: of each class in turn the one that the runs are surest of,
    and so each class is seen. In the order of classes."""
    sure = np.max(
        [
            np.where(asked.correct_mask(place), 0, likely.max(1))
            for place, likely in enumerate(asked.probabilities)
        ],
        axis=0,
    )
    labels = asked.labels[0]
    turn: Counter[int] = Counter()
    keyed = []
    for row in sorted(wrong, key=lambda row: -sure[row]):
        keyed.append((turn[int(labels[row])], -sure[row], row))
        turn[int(labels[row])] += 1
    kept = [row for _, _, row in sorted(keyed)[:most]]
    return sorted(kept, key=lambda row: (labels[row], -sure[row]))


def card(asked: Predictions, row: int, seen: Pictures) -> dict[str, Any]:
    label = int(asked.labels[0][row])
    said = []
    for place, likely in enumerate(asked.probabilities):
        best = int(likely[row].argmax())
        said.append(
            {
                "right": best == int(asked.labels[place][row]),
                "name": readable(asked.records[place], best),
                "label": best,
                "probability": float(likely[row, best]),
                "of_true": float(likely[row, asked.labels[place][row]]),
            }
        )
    return {
        "src": seen.uri(row),
        "path": asked.rows[row].id,
        "label": label,
        "name": readable(asked.records[0], label),
        "said": said,
    }


def sheets(
    asked: Predictions, spaces: Mapping[str, Space], notes: list[str]
) -> list[dict[str, Any]]:
    """A contact sheet of each policy that the runs were trained through: training images beside the
    very draws that vectors were made of, before the network's resize and crop. Notes say of which
    there is none."""
    of_policy: dict[str, dict[int, View]] = {}  # by the policy itself and the seed
    for record in asked.records:
        for view, names in record.spaces.items():
            space = next((spaces[name] for name in names if name in spaces), None)
            if space is None:
                notes.append(f"no contact sheet of {view}: its vectors are not in this cache")
            elif space.key["view"] is not None:
                found = view_of_key(space.key["view"], space.view)
                if is_drawn_alike(found, space):
                    key = keys.digest({**space.key["view"], "draw": None})
                    of_policy.setdefault(key, {})[found.draw] = found
                else:
                    notes.append(f"no contact sheet of {view}: {OTHER_VERSIONS}")
    notes[:] = dict.fromkeys(notes)
    samples = [sample for sample in asked.dataset.samples if sample.label is not None]
    samples = [sample for sample in samples if sample.split == "train"] or samples
    shown = evenly_spaced(samples, _SHEET_IMAGES)
    made = []
    for draws in of_policy.values():
        views = [draws[draw] for draw in sorted(draws)][:_SHEET_DRAWS]
        policy = views[0].policy_name
        try:
            views[0].check()
            rows = []
            for sample, item in zip(shown, items_of(shown)[0], strict=True):
                pixels = None if item is None else _pixels(sample, item)
                if pixels is not None and item is not None:
                    with contextlib.suppress(Undecodable):  # in one of the views
                        rows.append([pixels, *(view.picture(pixels, item) for view in views)])
        except FeatureCacheError as error:
            notes.append(f"no contact sheet of {policy}: {error}")
            continue
        if rows:
            made.append(
                {
                    "policy": policy,
                    "draws": [view.draw for view in views],
                    "src": pages.data_uri(jpeg(sheet(rows, _TILE, _GAP)), JPEG),
                }
            )
        else:
            notes.append(f"no contact sheet of {policy}: its images can't be read or decoded")
    return made


def readable(record: RunRecord, label: int) -> str:
    name = record.classes[label]
    return record.words.get(name, name)


def examples(
    rows: Sequence[dict[str, Any]], asked: Predictions, place: int, seen: Pictures, right: bool
) -> list[dict[str, Any]]:
    """The best or worst classes with pictures: of the best those it is surest of, of the worst the
    errors it is surest of (paper 003's table 3 and figure 7)."""
    record, likely, labels = asked.records[place], asked.probabilities[place], asked.labels[place]
    predicted, correct = likely.argmax(1), asked.correct_mask(place)
    found = []
    for row in rows:
        of_class = np.flatnonzero(labels == record.classes.index(row["class"]))
        wanted = of_class[correct[of_class] == right]
        order = wanted[np.argsort(-likely[wanted].max(1), kind="stable")][:_EXAMPLES]
        shown = [
            {
                "src": seen.uri(int(index)),
                "said": "" if right else readable(record, int(predicted[index])),
            }
            for index in order
        ]
        other = row["confused_with"]
        found.append(
            row
            | {
                "confused_name": None if other is None else record.words.get(other, other),
                "pictures": [picture for picture in shown if picture["src"]],
            }
        )
    return found
