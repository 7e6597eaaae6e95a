"""Vectors in fewer dimensions, and how near they are to each other.

Everything is a pure function of its arguments, and what is random has a seed; the work is
scikit-learn's.
"""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.errors import BadInput, MissingExtra, UnknownName

METHODS = ("tsne", "umap")
RETAINED = 0.9  # of the variance, before an embedding (001 §8.3)

Rows = npt.NDArray[np.floating[Any]]  # (N, D)
Labels = npt.NDArray[np.integer[Any]]  # (N,)


def variances(rows: Rows) -> npt.NDArray[np.float64]:
    """(min(N, D),) the variance along each principal component, the greatest first."""
    if len(rows) < 2:
        raise BadInput("principal components need at least 2 images; take more")
    exact = np.asarray(rows, np.float64)
    centred = exact - exact.mean(0)
    # Both products have the same eigenvalues but for zeros; the smaller is 8 times as quick as a
    # decomposition of the rows, of 2,000 by 4,096.
    product = centred @ centred.T if len(rows) <= rows.shape[1] else centred.T @ centred
    values = np.linalg.eigvalsh(product)[::-1] / (len(rows) - 1)
    return np.asarray(np.maximum(values, 0))


def retained(variance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(K,) the share of all variance that the first 1, 2, … K components keep; 1 where there is
    none at all to keep."""
    total = variance.sum()
    if total <= 0:
        return np.ones(len(variance))
    return np.asarray(np.cumsum(variance) / total)


def retained_singular(variance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(K,) the share as paper 001 §8.2 writes it (equation 2): of the singular values, not of their
    squares, which are the variances. It is the smaller of the two, and wants more components."""
    return retained(np.sqrt(variance))


def components_for(curve: npt.NDArray[np.float64], share: float) -> int:
    """How many components keep at least this share."""
    return int(np.searchsorted(curve, share - 1e-12) + 1)


def check_method(method: str) -> None:
    """Raises UnknownName, or MissingExtra for an embedding that is not installed."""
    if method not in METHODS:
        raise UnknownName("embedding", method, METHODS)
    if method == "umap" and importlib.util.find_spec("umap") is None:
        raise MissingExtra("an embedding by UMAP", "umap-learn", "umap")


def max_perplexity(rows: int) -> float:
    """The highest perplexity of an embedding of so many rows: a third of the others, as many as
    t-SNE looks at for each unit of it."""
    return max(1.0, (rows - 1) / 3)


def embed(
    rows: Rows, method: str = "tsne", perplexity: float = 30.0, seed: int = 0
) -> tuple[npt.NDArray[np.float64], int]:
    """(N, 2) an embedding of rows (N, D) by t-SNE (van der Maaten and Hinton, 2008) or UMAP, after
    the principal components that keep 90% of the variance (001 §8.3), and how many those are.

    `perplexity`, for UMAP the number of neighbours, is brought down to `max_perplexity`.
    """
    from sklearn.decomposition import PCA

    check_method(method)
    if len(rows) < 5:
        raise BadInput(f"an embedding of {len(rows)} images says nothing; take at least 5")
    if np.allclose(rows, rows[0]):
        return np.zeros((len(rows), 2)), 0
    solver = "covariance_eigh" if len(rows) > rows.shape[1] else "full"
    pca = PCA(n_components=RETAINED, svd_solver=solver)
    components = pca.fit_transform(np.asarray(rows, np.float64))
    neighbour_count = min(perplexity, max_perplexity(len(rows)))
    if method == "umap":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ImportWarning)  # of a part that needs TensorFlow
            import umap
        neighbours = max(2, round(neighbour_count))
        embedded = umap.UMAP(n_neighbors=neighbours, random_state=seed, n_jobs=1).fit_transform(
            components
        )
    else:
        from sklearn.manifold import TSNE

        start = "pca" if components.shape[1] >= 2 else "random"
        embedded = TSNE(perplexity=neighbour_count, init=start, random_state=seed).fit_transform(
            components
        )
    return np.asarray(embedded, np.float64), components.shape[1]


def cosines(a: Rows, b: Rows) -> npt.NDArray[np.float64]:
    """(N,) the cosine of each row of a and the same row of b; 0 where one of them is nothing."""
    return np.asarray((_unit(a) * _unit(b)).sum(1))


class Neighbourhood:
    """Clean rows (N, D) with their labels (N,), among which neighbours are looked for by cosine."""

    def __init__(self, clean: Rows, labels: Labels) -> None:
        from sklearn.neighbors import NearestNeighbors

        if len(clean) < 2:
            raise BadInput("neighbours need at least 2 images; take more")
        self._labels = labels
        # Of rows of length 1 the nearest are those of the highest cosine.
        self._index = NearestNeighbors(algorithm="brute").fit(_unit(clean))

    def voters(self, labels: Labels, k: int) -> npt.NDArray[np.int64]:
        """(M,) how many neighbours vote for a row of each of these labels: at most k, and at most
        as many as there are other clean rows of the label. More could outvote it, however near its
        own are. 0 for a label of one row."""
        sizes = np.bincount(self._labels, minlength=int(labels.max(initial=0)) + 1)
        return np.asarray(np.clip(sizes[labels] - 1, 0, k), np.int64)

    def agreement(
        self, rows: Rows, clean_indices: npt.NDArray[np.integer[Any]], k: int = 10
    ) -> npt.NDArray[np.bool_]:
        """(M,) whether most of the clean rows that are nearest to each of these (M, D), as many as
        `voters` says, bear its label. Row i is a view of clean row `own[i]`, which is left out of
        its neighbours. Of equal votes the nearest label counts."""
        voters = self.voters(self._labels[clean_indices], k)
        max_voters = int(voters.max(initial=0))
        neighbour_table = self._index.kneighbors(_unit(rows), max_voters + 1, return_distance=False)
        right = np.zeros(len(rows), bool)
        for row, (neighbours, clean_index, count) in enumerate(
            zip(neighbour_table, clean_indices, voters, strict=True)
        ):
            if count == 0:
                continue
            votes = self._labels[neighbours[neighbours != clean_index][:count]]
            names, first, counts = np.unique(votes, return_index=True, return_counts=True)
            highest = counts == counts.max()
            right[row] = names[highest][np.argmin(first[highest])] == self._labels[clean_index]
        return right


def nearest(row: npt.NDArray[np.floating[Any]], rows: Rows, k: int) -> npt.NDArray[np.int64]:
    """(k,) the places of the rows (N, D) of highest cosine with a row (D,), the nearest first; of
    equals the first."""
    similarities = cosines(np.broadcast_to(row, rows.shape), rows)
    return np.asarray(np.argsort(-similarities, kind="stable")[:k], np.int64)


def _unit(rows: Rows) -> npt.NDArray[np.float64]:
    exact: npt.NDArray[np.float64] = np.asarray(rows, np.float64)
    lengths = np.linalg.norm(exact, axis=1, keepdims=True)
    return np.asarray(exact / np.where(lengths > 0, lengths, 1))
