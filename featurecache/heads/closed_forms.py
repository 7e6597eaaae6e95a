"""Heads that are solved from sums over the training rows: no epochs, no optimizer.

`ridge` is least squares on one-hot targets, `lda` a linear discriminant with a shrunk shared
covariance, `ncm` the nearest class mean, and `random_features` ridge on a layer of fixed random
weights with ReLU (RanPAC, McDonnell et al. 2023). Rows are read in blocks, through every view of a
mixture, so they need not fit into memory. The largest array is the Gram matrix (P, P) of P
features.

scikit-learn has the same classifiers for rows in memory, without the weights of a mixture.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from featurecache.errors import BadInput
from featurecache.heads.gram_memory import check_width
from featurecache.heads.settings import RANDOM_FEATURES
from featurecache.heads.weighted_rows import Index, Labels, Rows, Vectors

Array = npt.NDArray[np.float64]
Form = Literal["ridge", "lda", "ncm", "random_features"]

# Ridge penalties in units of the mean eigenvalue of the centred vectors' Gram matrix, so that they
# fit vectors of any scale and number.
PENALTIES = 10.0 ** np.arange(-4, 1.5, 0.5)
_FIRST_PENALTY = 5  # index of the first one that is tried where each costs a factorization
_CALIBRATION_ROWS = 5000
_UNSEEN = -1e5  # logit of a class without training rows
_MIN_SHRINKAGE = 1e-6  # keeps the covariance of constant features invertible


class Layer(NamedTuple):
    """x @ weight.T + bias; weight (K, D), bias (K,) float32."""

    weight: Vectors
    bias: Vectors

    def __call__(self, X: Vectors) -> Vectors:
        return X @ self.weight.T + self.bias


@dataclass(frozen=True, kw_only=True)
class ClosedForm:
    """A solved head. `scores` are the last layer's outputs; `scale` makes them logits of calibrated
    probabilities. `projection` is the layer of random features, None for a linear head."""

    last: Layer
    scale: float
    setting: str
    projection: Layer | None = None

    def scores(self, X: Vectors) -> Vectors:
        """(N, C) of vectors (N, D)."""
        return self.last(features(X, self.projection))


@dataclass(kw_only=True)
class Sums:
    """Weighted sums over rows, about an `origin` (P,) near their mean."""

    counts: Array  # (C,)
    first: Array  # (C, P): sums per class
    second: npt.NDArray[np.floating] | None  # (P, P): only its upper triangle is filled
    origin: Vectors
    projection: Layer | None = None
    fourth: float = field(default=0.0)  # sum of the squared lengths' squares

    def add(self, rows: Rows, indices: Index) -> None:
        """Add these rows."""
        from scipy.linalg import blas

        width = len(self.origin)
        for views, part in rows.blocks(indices, width):
            y = rows.labels[part]
            targets = np.eye(len(self.counts))[y]
            for x, share in zip(views, rows.shares, strict=True):
                centred = features(x, self.projection) - self.origin
                self.counts += share * targets.sum(0)
                if self.second is None:
                    self.first += share * (targets.T @ centred)
                    continue
                centred = centred.astype(self.second.dtype, copy=False)
                self.first += share * (targets.T.astype(centred.dtype) @ centred)
                syrk = blas.ssyrk if centred.dtype == np.float32 else blas.dsyrk
                self.second = syrk(share, centred.T, beta=1.0, c=self.second, overwrite_c=1)

    @property
    def rows(self) -> float:
        return float(self.counts.sum())

    @property
    def mean(self) -> Array:
        """(P,) about the origin."""
        mean: Array = self.first.sum(0) / self.rows
        return mean

    @property
    def class_means(self) -> Array:
        """(C, P) about the origin; 0 for a class without rows."""
        means: Array = self.first / np.maximum(self.counts, 1e-12)[:, None]
        return means

    def gram(self, centres: Array, counts: Array) -> Array:
        """(P, P) float64, Fortran order, upper triangle: the second moments less those of centres
        (K, P) with these counts (K,)."""
        from scipy.linalg import blas

        assert self.second is not None
        gram = np.array(self.second, np.float64, order="F")
        scaled = np.asfortranarray((centres * np.sqrt(counts)[:, None]).T)
        result: Array = blas.dsyrk(-1.0, scaled, beta=1.0, c=gram, overwrite_c=1)
        return result

    def centred_gram(self) -> Array:
        """The Gram matrix of the rows about their mean."""
        return self.gram(self.mean[None], np.array([self.rows]))

    def cross(self) -> Array:
        """(P, C): the centred features times the one-hot targets."""
        return (self.first - self.counts[:, None] * self.mean).T


def solve(form: Form, rows: Rows, *, width: int = RANDOM_FEATURES, seed: int = 0) -> ClosedForm:
    """Solve a head on all rows; its setting and `scale` are chosen on rows that were left out.

    `width` and `seed` are those of random features. Ridge leaves out each image in turn, through
    all its views; the others, and ridge on grouped images, leave out a fifth of each class once.
    Raises BadInput for rows of a single class, for too few to choose a setting on, and if the Gram
    matrix does not fit into the memory that is available.
    """
    if len(np.unique(rows.labels)) < 2:
        raise BadInput("all training images are of one class; a head needs at least two")
    every = np.arange(len(rows.labels))
    depth = rows.views[0](every[:1]).shape[1]
    check_width(form, width if form == "random_features" else depth, rows.groups is not None)
    if form == "ridge" and rows.groups is None:
        sums = empty_sums(rows)
        sums.add(rows, every)
        return leave_each_out(rows, sums)
    projection = random_layer(rows, width, seed) if form == "random_features" else None
    mask = rows.held_out()
    fit_rows, test_rows = every[~mask], every[mask]
    sums = empty_sums(rows, projection, has_second=form != "ncm")
    sums.add(rows, fit_rows)
    if form in ("ridge", "random_features"):
        if not len(test_rows):
            raise BadInput("too few different training images to choose a setting on; add images")
        factor, scale = choose_penalty(rows, sums, test_rows)
        sums.add(rows, test_rows)
        last, penalty = ridge(sums, factor)
        return ClosedForm(
            last=last, scale=scale, setting=f"penalty {penalty:.3g}", projection=projection
        )
    scale = 1.0
    if len(test_rows):
        last, _ = discriminant(form, sums, rows, fit_rows)
        scores = _scores_of(rows, test_rows, projection, last)
        scale = calibration(scores, np.tile(rows.labels[test_rows], len(rows.views)))
        sums.add(rows, test_rows)
    last, setting = discriminant(form, sums, rows, every)
    return ClosedForm(last=last, scale=scale, setting=setting)


def features(X: Vectors, projection: Layer | None) -> Vectors:
    """The features (N, P) of vectors (N, D): random ones, or the vectors themselves."""
    if projection is None:
        return X
    result = projection(X)
    return np.maximum(result, 0, out=result)


def random_layer(rows: Rows, width: int, seed: int) -> Layer:
    """Normal random weights for vectors of deviation 1; the scaling is part of the layer."""
    total, squares, count = 0.0, 0.0, 0.0
    every = np.arange(len(rows.labels))
    depth = rows.views[0](every[:1]).shape[1]
    for views, part in rows.blocks(every, depth):
        for x, share in zip(views, rows.shares, strict=True):
            total = total + share * x.sum(0, dtype=np.float64)
            squares = squares + share * np.einsum("ij,ij->j", x, x, dtype=np.float64)
            count += share * len(part)
    mean = np.asarray(total) / count
    deviation = np.sqrt(np.maximum(np.asarray(squares) / count - mean**2, 0))
    is_constant = deviation <= 1e-6 * np.abs(mean)
    scale = np.where(is_constant, 0, 1 / np.where(is_constant, 1, deviation))
    weight = np.random.default_rng(seed).standard_normal((width, depth), np.float32)
    weight *= (scale / np.sqrt(depth)).astype(np.float32)
    return Layer(weight, -(weight @ mean.astype(np.float32)))


def empty_sums(rows: Rows, projection: Layer | None = None, has_second: bool = True) -> Sums:
    """Sums of no rows. Those of random features are float32, which is precise enough for the
    penalties and takes half the memory and time."""
    (*_, last) = [read(np.arange(min(1024, len(rows.labels)))) for read in rows.views]
    origin = features(last, projection).mean(0, dtype=np.float64).astype(np.float32)
    width = len(origin)
    dtype = np.float64 if projection is None else np.float32
    return Sums(
        counts=np.zeros(rows.classes),
        first=np.zeros((rows.classes, width)),
        second=np.zeros((width, width), dtype, order="F") if has_second else None,
        origin=origin,
        projection=projection,
    )


# ---- ridge ----


def ridge(sums: Sums, factor: float, gram: Array | None = None) -> tuple[Layer, float]:
    """Least squares at a penalty of `factor` mean eigenvalues, and the penalty. Overwrites the
    diagonal of `gram`."""
    from scipy.linalg import cho_factor, cho_solve

    gram = sums.centred_gram() if gram is None else gram
    penalty = factor * _mean_eigenvalue(gram)
    gram[np.diag_indices_from(gram)] += penalty
    solved = cho_solve(
        cho_factor(gram, overwrite_a=True, check_finite=False), sums.cross(), check_finite=False
    )
    return _layer(sums, solved.T, sums.counts / sums.rows - sums.mean @ solved), penalty


def choose_penalty(rows: Rows, sums: Sums, test_rows: Index) -> tuple[float, float]:
    """The penalty, in mean eigenvalues, with the most held-out rows right, and the scale of its
    scores.

    A penalty costs a factorization, so the search begins where most sets have their best and goes
    up or down while that helps.
    """
    y = np.tile(rows.labels[test_rows], len(rows.views))
    weights = np.repeat(rows.shares, len(test_rows))
    scores: dict[int, Vectors] = {}

    def right(index: int) -> float:
        if index not in scores:
            last, _ = ridge(sums, PENALTIES[index])
            scores[index] = _scores_of(rows, test_rows, sums.projection, last)
        return float(weights @ (scores[index].argmax(1) == y))

    best, steps = _FIRST_PENALTY, [-1, 1]
    while steps:
        following = best + steps[-1]
        if 0 <= following < len(PENALTIES) and right(following) > right(best):
            best, steps = following, steps[-1:]
        else:
            steps.pop()
    return float(PENALTIES[best]), calibration(scores[best], y)


def leave_each_out(rows: Rows, sums: Sums) -> ClosedForm:
    """Ridge with the penalty of the highest leave-one-image-out accuracy.

    One eigendecomposition of the Gram matrix serves every penalty. Without the views of an image,
    the residuals of these views are (1 - H)^-1 times their residuals, where H (V, V) is the image's
    block of the hat matrix (Allen's PRESS, 1974, for blocks).
    """
    gram = sums.centred_gram()
    values, axes = np.linalg.eigh(gram, UPLO="U")
    values = np.maximum(values, 0)
    penalties = PENALTIES * (values.mean() or 1.0)
    rotated = axes.T @ sums.cross()
    # float32 is precise enough to choose the penalty, and takes half the time.
    axes32 = axes.astype(np.float32)
    centre = (sums.origin + sums.mean).astype(np.float32)
    prior = (sums.counts / sums.rows).astype(np.float32)
    root = np.sqrt(rows.shares).astype(np.float32)
    right = np.zeros(len(penalties))
    samples: list[list[Vectors]] = [[] for _ in penalties]
    every = np.arange(len(rows.labels))
    room = max(1, _CALIBRATION_ROWS // len(rows.views))
    sample = np.random.default_rng(0).permutation(every)[:room]
    for views, part in rows.blocks(every, len(axes)):
        y = rows.labels[part]
        targets = np.eye(rows.classes, dtype=np.float32)[y][:, None]
        rotated_views = np.stack([(x - centre) @ axes32 for x in views], 1)  # (B, V, P)
        flat = rotated_views.reshape(-1, len(axes))
        is_sampled = np.isin(part, sample)
        for number, penalty in enumerate(penalties):
            factors = (1 / (values + penalty)).astype(np.float32)
            weight = (rotated * factors[:, None]).astype(np.float32)
            fitted = (flat @ weight).reshape(*rotated_views.shape[:2], -1) + prior
            hat = (rotated_views * factors) @ rotated_views.swapaxes(1, 2)
            hat = (hat + np.float32(1 / sums.rows)) * (root[:, None] * root)
            identity = np.eye(len(root), dtype=np.float32) * (1 + 1e-6)  # a leverage of exactly 1
            residuals = np.linalg.solve(identity - hat, (targets - fitted) * root[:, None])
            unseen = (targets - residuals / root[:, None]).astype(np.float32)
            right[number] += ((unseen.argmax(2) == y[:, None]) @ np.array(rows.shares)).sum()
            samples[number].append(unseen[is_sampled].reshape(-1, rows.classes))
    best = int(right.argmax())
    solved = axes @ (rotated / (values + penalties[best])[:, None])
    order = np.sort(sample)
    return ClosedForm(
        last=_layer(sums, solved.T, sums.counts / sums.rows - sums.mean @ solved),
        scale=calibration(
            np.concatenate(samples[best]), np.repeat(rows.labels[order], len(rows.views))
        ),
        setting=f"penalty {penalties[best]:.3g}",
    )


# ---- class means ----


def discriminant(form: Form, sums: Sums, rows: Rows, indices: Index) -> tuple[Layer, str]:
    """Linear discriminants of class means, with the rows' covariance within classes (lda) or
    without (ncm), and the setting. `indices` are the rows that are in the sums."""
    from scipy.linalg import cho_factor, cho_solve

    means, has_rows = sums.class_means, sums.counts > 0
    if form == "ncm":
        bias = -0.5 * (means**2).sum(1)
        return _layer(sums, means, np.where(has_rows, bias, _UNSEEN)), ""
    covariance = sums.gram(means, sums.counts) / sums.rows
    width = len(covariance)
    spread = float(np.trace(covariance)) / width or 1.0
    shrinkage = max(shrinkage_of(covariance, sums, rows, indices), _MIN_SHRINKAGE)
    covariance *= 1 - shrinkage
    covariance[np.diag_indices(width)] += shrinkage * spread
    weight = cho_solve(
        cho_factor(covariance, overwrite_a=True, check_finite=False), means.T, check_finite=False
    ).T
    prior = np.log(np.maximum(sums.counts, 1e-12) / sums.rows)
    bias = prior - 0.5 * (weight * means).sum(1)
    weight[~has_rows] = 0
    return _layer(sums, weight, np.where(has_rows, bias, _UNSEEN)), f"shrinkage {shrinkage:.3g}"


def shrinkage_of(covariance: Array, sums: Sums, rows: Rows, indices: Index) -> float:
    """The share of the identity by Ledoit and Wolf (2004), for rows about the mean of their class.
    The upper triangle of `covariance` (P, P) is given. Views of an image count as one row."""
    means, width, fourth = sums.class_means, len(covariance), 0.0
    for views, part in rows.blocks(indices, width):
        centres = means[rows.labels[part]] + sums.origin
        for x, share in zip(views, rows.shares, strict=True):
            fourth += share * float((((x - centres) ** 2).sum(1) ** 2).sum())
    upper = np.triu(covariance)
    squares = 2 * float((upper**2).sum()) - float((np.diag(covariance) ** 2).sum())
    spread = float(np.trace(covariance)) / width
    distance = squares / width - spread**2
    noise = (fourth / sums.rows - squares) / (width * sums.rows)
    return min(noise, distance) / distance if distance > 0 else 0.0


# ---- what they share ----


def calibration(scores: Vectors, y: Labels) -> float:
    """The factor at which the scores (M, C) are the logits of least cross-entropy. The targets have
    the weight of one row in M + 1 on all classes alike: few rows that are all right would make the
    factor as large as it can be, and the first wrong probability 0."""
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    step = max(1, len(y) // _CALIBRATION_ROWS)
    sample, labels = scores[::step].astype(np.float64), y[::step]
    label_scores = sample[np.arange(len(labels)), labels]
    size = float(sample.std()) or 1.0
    share = 1 + 1 / len(labels)

    def loss(log_scale: float) -> float:
        scale = np.exp(log_scale) / size
        targets = label_scores + sample.mean(1) / len(labels)
        return float((share * logsumexp(scale * sample, axis=1) - scale * targets).mean())

    best = minimize_scalar(loss, bounds=(-4.0, 4.0), method="bounded")
    return float(np.exp(best.x) / size)


def _scores_of(rows: Rows, indices: Index, projection: Layer | None, last: Layer) -> Vectors:
    """(V * M, C) the scores of some rows, view after view."""
    by_view: list[list[Vectors]] = [[] for _ in rows.views]
    for views, _ in rows.blocks(indices, max(last.weight.shape)):
        for results, x in zip(by_view, views, strict=True):
            results.append(last(features(x, projection)))
    return np.concatenate([block for results in by_view for block in results])


def _mean_eigenvalue(gram: Array) -> float:
    return float(np.trace(gram)) / len(gram) or 1.0


def _layer(sums: Sums, weight: Array, bias: Array) -> Layer:
    """The layer of features as they are, from the one of features about the origin."""
    return Layer(weight.astype(np.float32), (bias - weight @ sums.origin).astype(np.float32))
