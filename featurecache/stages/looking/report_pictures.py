"""The pictures of a report: which images it shows, and the heads' predictions for them."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from featurecache import keys, text
from featurecache.errors import FeatureCacheError
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.images.decode import Undecodable
from featurecache.images.samples import Sample, items_of
from featurecache.images.thumbnails import JPEG, jpeg, sheet, thumbnail
from featurecache.images.views import View, original, view_of_key
from featurecache.lookup.held_spaces import OTHER_VERSIONS, is_drawn_alike
from featurecache.runs.predictions import Predictions
from featurecache.runs.record import RunRecord
from featurecache.seen_items import with_folders
from featurecache.stages.studies.study_files import unread_notes
from featurecache.study import metrics, pages
from featurecache.study.sampling import evenly_spaced

THUMBNAIL = 96  # pixels
_TILE, _GAP = 96, 3  # of a contact sheet
_SHEET_IMAGES, _SHEET_DRAWS = 5, 4
_EXAMPLES = 4  # pictures of each of the best and worst classes


class Pictures:
    """Thumbnails of the images of a split, made on first use."""

    def __init__(self, predictions: Predictions) -> None:
        self._predictions = predictions
        self._samples = {sample.id: sample for sample in predictions.dataset.samples}
        self._made: dict[int, str] = {}

    def uri(self, index: int) -> str:
        """The picture of a row as a data URI; empty if the image is no longer readable."""
        if index not in self._made:
            row = self._predictions.rows[index]
            pixels = _pixels(self._samples[row.id], row.item)
            made = None if pixels is None else thumbnail(pixels, THUMBNAIL)
            self._made[index] = "" if made is None else pages.data_uri(made, JPEG)
        return self._made[index]

    def notes(self) -> list[str]:
        """A note on the number of images that are no longer readable."""
        return unread_notes(sum(not uri for uri in self._made.values()))


def _pixels(sample: Sample, item: bytes) -> np.ndarray | None:
    """The decoded pixels of a sample; None if it can't be decoded, or if its file has gone or
    changed since it was hashed, which its card shows."""
    try:
        return original(sample, item)
    except (FeatureCacheError, Undecodable):
        return None


def wrong_rows_of(predictions: Predictions) -> list[int]:
    """The rows that at least one of the runs misclassifies."""
    rights = np.array(
        [predictions.correct_mask(run_index) for run_index in range(len(predictions.runs))]
    )
    return [int(row) for row in np.flatnonzero(~rights.all(0))]


def balanced_sample(wrong: Sequence[int], predictions: Predictions, count: int) -> list[int]:
    """At most `count` of the misclassified rows, in the order of classes.

    Classes take turns, each with the row that the runs are most confident about, so that every
    class is shown.
    """
    sure = np.max(
        [
            np.where(predictions.correct_mask(run_index), 0, probabilities.max(1))
            for run_index, probabilities in enumerate(predictions.probabilities)
        ],
        axis=0,
    )
    labels = predictions.labels[0]
    turn: Counter[int] = Counter()
    keyed = []
    for row in sorted(wrong, key=lambda row: -sure[row]):
        keyed.append((turn[int(labels[row])], -sure[row], row))
        turn[int(labels[row])] += 1
    chosen = [row for _, _, row in sorted(keyed)[:count]]
    return sorted(chosen, key=lambda row: (labels[row], -sure[row]))


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a run predicts for an image, with its probability and that of the true class."""

    right: bool
    name: str
    label: int
    probability: float
    of_true: float


@dataclass(frozen=True, kw_only=True)
class Card:
    """An image, its true class, and what each run predicts. `src` is empty if it can't be read."""

    src: str
    path: str
    label: int
    name: str
    answers: list[Answer]


def card(predictions: Predictions, row: int, thumbnails: Pictures) -> Card:
    label = int(predictions.labels[0][row])
    answers = []
    for run_index, probabilities in enumerate(predictions.probabilities):
        predicted = int(probabilities[row].argmax())
        answers.append(
            Answer(
                right=predicted == int(predictions.labels[run_index][row]),
                name=class_label_name(predictions.records[run_index], predicted),
                label=predicted,
                probability=float(probabilities[row, predicted]),
                of_true=float(probabilities[row, predictions.labels[run_index][row]]),
            )
        )
    return Card(
        src=thumbnails.uri(row),
        path=predictions.rows[row].id,
        label=label,
        name=class_label_name(predictions.records[0], label),
        answers=answers,
    )


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """The contact sheet of a policy: its picture and the draws that it shows."""

    policy: str
    draws: list[int]
    src: str


def sheets(
    predictions: Predictions, cache: Cache, spaces: Mapping[str, Space]
) -> tuple[list[Sheet], list[str]]:
    """A contact sheet per policy that the runs were trained on: training images beside the draws
    that the vectors were made from, before the network's resize and crop. The notes name the
    policies without a sheet."""
    notes: list[str] = []
    views_by_policy: dict[str, dict[int, View]] = {}  # by a hash of policy and seed, then by draw
    for record in predictions.records:
        for view, names in record.spaces.items():
            space = next((spaces[name] for name in names if name in spaces), None)
            if space is None:
                notes.append(f"no contact sheet of {view}: its vectors are not in this cache")
            elif space.key["view"] is not None:
                cached_view = with_folders(cache.store, view_of_key(space.key, space.view))
                if is_drawn_alike(cached_view, space):
                    key = keys.digest({**space.key["view"], "draw": None})
                    views_by_policy.setdefault(key, {})[cached_view.draw] = cached_view
                else:
                    notes.append(f"no contact sheet of {view}: {OTHER_VERSIONS}")
    notes = list(dict.fromkeys(notes))
    samples = [sample for sample in predictions.dataset.samples if sample.label is not None]
    samples = [sample for sample in samples if sample.split == "train"] or samples
    sheet_samples = evenly_spaced(samples, _SHEET_IMAGES)
    made = []
    for draws in views_by_policy.values():
        views = [draws[draw] for draw in sorted(draws)][:_SHEET_DRAWS]
        policy = views[0].policy_name
        try:
            views[0].check()
            rows = []
            for sample, item in zip(sheet_samples, items_of(sheet_samples)[0], strict=True):
                pixels = None if item is None else _pixels(sample, item)
                if pixels is not None and item is not None:
                    with contextlib.suppress(Undecodable):  # in one of the views
                        rows.append([pixels, *(view.picture(pixels, item) for view in views)])
        except FeatureCacheError as error:
            notes.append(f"no contact sheet of {policy}: {error}")
            continue
        if rows:
            made.append(
                Sheet(
                    policy=policy,
                    draws=[view.draw for view in views],
                    src=pages.data_uri(jpeg(sheet(rows, _TILE, _GAP)), JPEG),
                )
            )
        else:
            notes.append(f"no contact sheet of {policy}: its images can't be read or decoded")
    return made, notes


def class_label_name(record: RunRecord, label: int) -> str:
    return text.readable_name(record.classes[label], record.words)


@dataclass(frozen=True, kw_only=True)
class Example:
    """A picture of a class, and what it was predicted as; empty if that is right."""

    src: str
    predicted: str


@dataclass(frozen=True, kw_only=True)
class RankedClass:
    """One of the best or worst classes: `wrong` of its `n` images are, and `confused` of those were
    predicted as `confused_name`."""

    name: str
    n: int
    top1: float
    wrong: int
    confused_name: str | None
    confused: int
    pictures: list[Example]


def examples(
    rows: Sequence[metrics.ClassRow],
    predictions: Predictions,
    run_index: int,
    thumbnails: Pictures,
    right: bool,
) -> list[RankedClass]:
    """The best or worst classes with pictures: the most confident correct predictions for the best,
    the most confident errors for the worst (paper 003's table 3 and figure 7)."""
    record, probabilities, labels = (
        predictions.records[run_index],
        predictions.probabilities[run_index],
        predictions.labels[run_index],
    )
    predicted, correct = probabilities.argmax(1), predictions.correct_mask(run_index)
    rows_with_pictures = []
    for row in rows:
        class_rows = np.flatnonzero(labels == record.classes.index(row["class"]))
        wanted = class_rows[correct[class_rows] == right]
        order = wanted[np.argsort(-probabilities[wanted].max(1), kind="stable")][:_EXAMPLES]
        pictures = [
            Example(
                src=thumbnails.uri(int(index)),
                predicted="" if right else class_label_name(record, int(predicted[index])),
            )
            for index in order
        ]
        confused_with = row["confused_with"]
        rows_with_pictures.append(
            RankedClass(
                name=row["name"],
                n=row["n"],
                top1=row["top1"],
                wrong=row["wrong"],
                confused_name=None
                if confused_with is None
                else text.readable_name(confused_with, record.words),
                confused=row["confused"],
                pictures=[picture for picture in pictures if picture.src],
            )
        )
    return rows_with_pictures
