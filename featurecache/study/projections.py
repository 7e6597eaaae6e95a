"""Projections of vectors to fewer dimensions, and nearest neighbours among vectors.

Every function is a pure function of its arguments; random ones take a seed. scikit-learn does the
work.
"""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.errors import BadInput, MissingExtra, UnknownName

METHODS = ("tsne", "umap")
RETAINED = 0.9  # share of the variance that is kept before an embedding (paper 001 §8.3)

Rows = npt.NDArray[np.floating[Any]]  # (N, D)
Labels = npt.NDArray[np.integer[Any]]  # (N,)


def variances(rows: Rows) -> npt.NDArray[np.float64]:
    """The variance along each principal component, (min(N, D),), the largest first."""
    if len(rows) < 2:
        raise BadInput("principal components need at least 2 images; take more")
    exact = np.asarray(rows, np.float64)
    centred = exact - exact.mean(0)
    # Both products have the same eigenvalues, apart from zeros. For 2,000 rows of 4,096 numbers the
    # smaller product is 8 times as fast as a decomposition of the rows.
    product = centred @ centred.T if len(rows) <= rows.shape[1] else centred.T @ centred
    values = np.linalg.eigvalsh(product)[::-1] / (len(rows) - 1)
    return np.asarray(np.maximum(values, 0))


def retained(variance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The share of the variance that the first 1, 2, … K components retain, (K,). It is 1 if there
    is no variance."""
    total = variance.sum()
    if total <= 0:
        return np.ones(len(variance))
    return np.asarray(np.cumsum(variance) / total)


def retained_singular(variance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The share by equation 2 of paper 001 §8.2, (K,).

    It takes shares of the singular values instead of their squares, the variances. It is smaller
    than `retained`, so the same share needs more components.
    """
    return retained(np.sqrt(variance))


def components_for(curve: npt.NDArray[np.float64], share: float) -> int:
    """The number of components that retain at least this share."""
    return int(np.searchsorted(curve, share - 1e-12) + 1)


def check_method(method: str) -> None:
    """Raise UnknownName for an unknown method, MissingExtra for one that is not installed."""
    if method not in METHODS:
        raise UnknownName("embedding", method, METHODS)
    if method == "umap" and importlib.util.find_spec("umap") is None:
        raise MissingExtra("an embedding by UMAP", "umap-learn", "umap")


def max_perplexity(rows: int) -> float:
    """The highest perplexity for an embedding of this many rows: a third of the other rows, since
    t-SNE uses three neighbours per unit of perplexity."""
    return max(1.0, (rows - 1) / 3)


def embed(
    rows: Rows, method: str = "tsne", perplexity: float = 30.0, seed: int = 0
) -> tuple[npt.NDArray[np.float64], int]:
    """An embedding (N, 2) of rows (N, D) by t-SNE (van der Maaten and Hinton, 2008) or UMAP.

    The rows are first projected onto the principal components that retain 90% of the variance
    (paper 001 §8.3); their number is returned too. `perplexity` is the number of neighbours for
    UMAP. It is limited to `max_perplexity`.
    """
    from sklearn.decomposition import PCA

    check_method(method)
    if len(rows) < 5:
        raise BadInput(f"an embedding needs at least 5 images, not {len(rows)}; take more")
    if np.allclose(rows, rows[0]):
        return np.zeros((len(rows), 2)), 0
    solver = "covariance_eigh" if len(rows) > rows.shape[1] else "full"
    pca = PCA(n_components=RETAINED, svd_solver=solver)
    components = pca.fit_transform(np.asarray(rows, np.float64))
    neighbour_count = min(perplexity, max_perplexity(len(rows)))
    if method == "umap":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ImportWarning)  # for a part that needs TensorFlow
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
    """The cosines (N,) between each row of `a` and the same row of `b`; 0 if either is all 0."""
    return np.asarray((_unit(a) * _unit(b)).sum(1))


class Neighbourhood:
    """Clean rows (N, D) and their labels (N,), searched for nearest neighbours by cosine."""

    def __init__(self, clean: Rows, labels: Labels) -> None:
        from sklearn.neighbors import NearestNeighbors

        if len(clean) < 2:
            raise BadInput("neighbours need at least 2 images; take more")
        self._labels = labels
        # Among rows of length 1 the nearest have the highest cosine.
        self._index = NearestNeighbors(algorithm="brute").fit(_unit(clean))

    def voters(self, labels: Labels, k: int) -> npt.NDArray[np.int64]:
        """How many neighbours vote on a row of each of these labels, (M,).

        It is at most k, and at most the number of other clean rows of the label: with more voters
        the other labels could outvote it, however near its own rows are. It is 0 for a label of one
        row.
        """
        sizes = np.bincount(self._labels, minlength=int(labels.max(initial=0)) + 1)
        return np.asarray(np.clip(sizes[labels] - 1, 0, k), np.int64)

    def agreement(
        self, rows: Rows, clean_indices: npt.NDArray[np.integer[Any]], k: int = 10
    ) -> npt.NDArray[np.bool_]:
        """Whether most of the nearest clean rows have the same label, (M,) for each row of (M, D).

        `voters` gives the number of neighbours that vote. Row i is a view of the clean row
        `clean_indices[i]`, which is not one of its neighbours. In a tie the label of the nearest
        neighbour counts.
        """
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
    """The indexes (k,) of the rows (N, D) that have the highest cosine with a row (D,), the nearest
    first. Equal cosines keep their order."""
    similarities = cosines(np.broadcast_to(row, rows.shape), rows)
    return np.asarray(np.argsort(-similarities, kind="stable")[:k], np.int64)


def _unit(rows: Rows) -> npt.NDArray[np.float64]:
    exact: npt.NDArray[np.float64] = np.asarray(rows, np.float64)
    lengths = np.linalg.norm(exact, axis=1, keepdims=True)
    return np.asarray(exact / np.where(lengths > 0, lengths, 1))
