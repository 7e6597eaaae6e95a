"""featurecache: never compute the same view of the same image twice.

Every command is one function here, with the same name and arguments:

>>> import featurecache
>>> featurecache.featurize("digits", backbone="efficientnet_lite0", cache="cache")  # doctest: +SKIP
>>> X, y = featurecache.vectors("digits", "none", "efficientnet_lite0")  # doctest: +SKIP
>>> featurecache.load_head(run).predict_proba(X)  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "augment": "stages.augment",
    "backbones": "stages.backbones",
    "baselines": "stages.baselines",
    "diff": "stages.diff",
    "doctor": "stages.doctor",
    "ensemble": "stages.ensemble",
    "evaluate": "stages.evaluate",
    "export": "stages.export",
    "featurize": "stages.featurize",
    "gc": "stages.gc",
    "index": "stages.index",
    "inspect": "stages.inspect",
    "load_head": "stages.predict",
    "ls": "stages.ls",
    "open_dataset": "images.datasets",
    "plan": "stages.plan",
    "policies": "stages.policies",
    "predict": "stages.predict",
    "preview": "stages.policies",
    "quickstart": "stages.quickstart",
    "report": "stages.report",
    "retry": "stages.retry",
    "run": "stages.run",
    "study_drift": "stages.drift",
    "study_filters": "stages.filters",
    "study_neighbours": "stages.neighbours",
    "study_pca": "stages.pca",
    "study_saliency": "stages.saliency",
    "study_tsne": "stages.tsne",
    "submit": "stages.submit",
    "train_head": "stages.train_head",
    "vectors": "stages.export",
    "verify": "stages.verify",
    "why": "stages.why",
    "worth": "stages.worth",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    # Found when first used, so that `import featurecache` costs nothing and needs no torch.
    if name in _HOMES:
        return getattr(importlib.import_module(f"featurecache.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'featurecache' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
