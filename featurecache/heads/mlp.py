"""The trained head as a scikit-learn classifier: its networks (head_networks.py), and the rest of
what scikit-learn's tools ask of an estimator."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin
from torch import nn

from featurecache.errors import BadInput
from featurecache.heads.head_networks import HeadNetworks, in_features_of
from featurecache.training.head_shapes import HeadSpec


class Head(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # sklearn has no types
    """A trained classifier of vectors: one network, or one per fold whose probabilities are
    averaged.

    `classes_` (C,) are the class names as an array of str, in the order of the probabilities;
    `n_features_in_` is D. Heads come from training or from `Head.load`; `fit` raises.
    """

    def __init__(
        self, members: Sequence[nn.Sequential], classes: Sequence[str], spec: HeadSpec
    ) -> None:
        """`members` are trained networks of shape `spec`; `classes` names the labels 0..C-1."""
        self.members = members
        self.classes = classes
        self.spec = spec
        self.classes_ = np.array(list(classes), dtype=str)
        self.n_features_in_ = in_features_of(members[0])

    @property
    def _networks(self) -> HeadNetworks:
        return HeadNetworks(members=self.members, classes=self.classes, spec=self.spec)

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike) -> Head:
        """Always raises BadInput. It exists because scikit-learn's tools (FrozenEstimator,
        permutation_importance, …) accept only estimators that have a `fit`."""
        raise BadInput(
            "a head is trained by train-head, not by fit; wrap it in sklearn's FrozenEstimator"
        )

    def predict_proba(self, X: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Probabilities (N, C) float32 of vectors (N, D); every row sums to 1.

        Raises BadInput for a wrong shape or for values that are not finite.
        """
        return self._networks.predict_proba(X)

    def predict(self, X: npt.ArrayLike) -> npt.NDArray[np.str_]:
        """Names (N,) of the most probable class of vectors (N, D); raises as `predict_proba`."""
        names: npt.NDArray[np.str_] = self.classes_[self.predict_proba(X).argmax(1)]
        return names

    def save(self, folder: Path) -> None:
        """Write the weights, then `head.json`; each file atomically."""
        self._networks.save(folder)

    @classmethod
    def load(cls, folder: Path) -> Head:
        """The head that `save` wrote into `folder`; nothing is unpickled.

        Raises BadInput if there is no head, DamagedRun if its files don't fit together.
        """
        return cls.from_networks(HeadNetworks.load(folder))

    @classmethod
    def from_networks(cls, networks: HeadNetworks) -> Head:
        """These networks as a classifier."""
        return cls(networks.members, networks.classes, networks.spec)
