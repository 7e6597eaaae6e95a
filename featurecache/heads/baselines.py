"""Classifiers of vectors without a training loop, of which some are saved as heads elsewhere.

A trained head has to beat these. Each takes training vectors X (N, D) float32 with labels y (N,) in
0..C-1, chooses its one setting on them alone, and returns scores (M, C) for other vectors Z (M, D);
the highest score is the predicted class. Every row must be a different image: remove duplicates
first, or a held-out row has a copy among the training rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from featurecache.errors import BadInput
from featurecache.heads.closed_forms import PENALTIES as PENALTIES
from featurecache.heads.closed_forms import Form, solve
from featurecache.heads.logistic import PARTS, parts_of
from featurecache.heads.settings import RANDOM_FEATURES
from featurecache.heads.weighted_rows import Rows

Vectors = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Scores = npt.NDArray[np.floating]

# Inverse penalties of logistic regression, for the mean loss: scikit-learn, which sums, gets C / N.
INVERSES = 10.0 ** np.arange(1, 4.5, 0.5)
NEIGHBOURS = (1, 5, 10, 20, 50, 100)
TEMPERATURE = 0.07  # of a neighbour's vote, exp(cosine / T): Wu et al., CVPR 2018
_MAX_STEPS = 1000  # of lbfgs
_ROWS_AT_ONCE = 4096
_PER_ROW = 4  # random features


class Chosen(NamedTuple):
    """The setting chosen on the training rows, and the scores (M, C) of the other rows."""

    setting: str
    scores: Scores


def ridge(X: Vectors, y: Labels, Z: Vectors, classes: int) -> Chosen:
    """Least squares on one-hot targets, the penalty chosen by leave-one-out accuracy."""
    return _solved("ridge", X, y, Z, classes)


def lda(X: Vectors, y: Labels, Z: Vectors, classes: int) -> Chosen:
    """Linear discriminants with a covariance shared by the classes, shrunk by Ledoit and Wolf."""
    return _solved("lda", X, y, Z, classes)


def ncm(X: Vectors, y: Labels, Z: Vectors, classes: int) -> Chosen:
    """The class with the nearest mean."""
    return _solved("ncm", X, y, Z, classes)


def random_features(
    X: Vectors, y: Labels, Z: Vectors, classes: int, width: int | None = None
) -> Chosen:
    """Ridge on a layer of `width` random weights with ReLU, by default RANDOM_FEATURES, or _PER_ROW
    per training row if these are fewer; the penalty is chosen on a held-out fifth of the training
    rows."""
    return _solved("random_features", X, y, Z, classes, width)


def _solved(
    form: Form, X: Vectors, y: Labels, Z: Vectors, classes: int, width: int | None = None
) -> Chosen:
    width = width or min(RANDOM_FEATURES, _PER_ROW * len(X))
    solved = solve(form, Rows.of_array(X, y, classes), width=width)
    scores = np.concatenate([solved.scores(Z[block]) for block in _blocks(len(Z))])
    parts = [f"width {width}"] if form == "random_features" else []
    return Chosen(", ".join([*parts, *filter(None, [solved.setting])]), scores)


def logistic(X: Vectors, y: Labels, Z: Vectors, classes: int) -> Chosen:
    """Multinomial logistic regression by lbfgs on standardised vectors.

    The penalty is lowered, each fit starting from the previous one, until the accuracy on a
    held-out fifth of the training rows drops. The final fit uses all rows.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(X)
    X, Z = scaler.transform(X), scaler.transform(Z)
    val_mask = held_part(y, classes)
    model = LogisticRegression(max_iter=_MAX_STEPS, warm_start=True)
    chosen, best = INVERSES[0], -1.0
    with warnings.catch_warnings():
        # Chosen.setting reports it.
        warnings.simplefilter("ignore", ConvergenceWarning)
        for inverse in INVERSES:
            model.set_params(C=inverse / (~val_mask).sum()).fit(X[~val_mask], y[~val_mask])
            accuracy = float(model.score(X[val_mask], y[val_mask]))
            if accuracy < best:
                break
            chosen, best = inverse, accuracy
        model.set_params(C=chosen / len(X)).fit(X, y)
    scores = np.zeros((len(Z), classes))
    scores[:, model.classes_] = model.predict_proba(Z)
    is_unfinished = max(model.n_iter_) >= _MAX_STEPS
    unfinished = f", not converged in {_MAX_STEPS} steps" if is_unfinished else ""
    return Chosen(f"C {chosen / len(X):.3g}{unfinished}", scores)


def neighbours(X: Vectors, y: Labels, Z: Vectors, classes: int) -> Chosen:
    """The k most similar training rows by cosine, their votes weighted by similarity; k is chosen
    on a held-out fifth of the training rows."""
    from sklearn.neighbors import NearestNeighbors
    from sklearn.preprocessing import normalize

    X, Z = normalize(X), normalize(Z)

    def nearest(train: Vectors, queries: Vectors) -> tuple[npt.NDArray, npt.NDArray]:
        # For unit vectors the nearest are the most similar: distance**2 = 2 - 2 * cosine.
        index = NearestNeighbors(n_neighbors=min(NEIGHBOURS[-1], len(train)), algorithm="brute")
        distances, indices = index.fit(train).kneighbors(queries)
        return 1 - distances**2 / 2, indices

    val_mask = held_part(y, classes)
    cosines, indices = nearest(X[~val_mask], X[val_mask])
    accuracies = {
        k: (votes(cosines, y[~val_mask][indices], k, classes).argmax(1) == y[val_mask]).mean()
        for k in NEIGHBOURS
        if k <= (~val_mask).sum()
    }
    k = max(accuracies, key=lambda k: (accuracies[k], -k))
    cosines, indices = nearest(X, Z)
    return Chosen(f"k {k}", votes(cosines, y[indices], k, classes))


def votes(cosines: Scores, labels: Labels, k: int, classes: int) -> Scores:
    """The votes (M, C) of the first k of K neighbours; `cosines` and `labels` are (M, K)."""
    result = np.zeros((len(cosines), classes))
    rows = np.arange(len(cosines))
    for rank in range(k):
        # Each row occurs once per step, so += adds every vote.
        result[rows, labels[:, rank]] += np.exp((cosines[:, rank] - 1) / TEMPERATURE)
    return result


def held_part(y: Labels, classes: int) -> npt.NDArray[np.bool_]:
    """Which rows (N,) are held out: a fifth of each class, always the same rows.

    Raises BadInput if every class is too small to spare a row.
    """
    val_mask: npt.NDArray[np.bool_] = parts_of(y, classes) == PARTS - 1
    if not val_mask.any():
        raise BadInput(
            f"every class has fewer than {PARTS} different training images, too few to choose a "
            "setting; add images"
        )
    return val_mask


def _blocks(rows: int) -> Iterator[slice]:
    for start in range(0, rows, _ROWS_AT_ONCE):
        yield slice(start, start + _ROWS_AT_ONCE)
