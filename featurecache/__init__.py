"""featurecache: never compute the same view of the same image twice.

Every command is a function here, with the same name and arguments:

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
    "Featurizer": "adapters.featurizer",
    "HeadClassifier": "adapters.head_classifier",
    "VectorDataset": "adapters.vector_dataset",
    "augment": "stages.cache.augment",
    "backbones": "stages.looking.backbones",
    "baselines": "stages.heads.baselines",
    "diff": "stages.cache.diff",
    "doctor": "stages.looking.doctor",
    "ensemble": "stages.heads.ensemble",
    "evaluate": "stages.heads.evaluate",
    "export": "stages.cache.export",
    "featurize": "stages.cache.featurize",
    "fit_generator": "stages.generators.fit_generator",
    "gc": "stages.cache.gc",
    "generate": "stages.generators.generate",
    "index": "stages.cache.index",
    "inspect": "stages.looking.inspect",
    "list_runs": "stages.looking.runs",
    "load_head": "stages.heads.predict",
    "ls": "stages.cache.ls",
    "open_dataset": "images.datasets",
    "plan": "stages.cache.plan",
    "policies": "stages.looking.policies",
    "predict": "stages.heads.predict",
    "preview": "stages.looking.policies",
    "quickstart": "stages.recipes.quickstart",
    "report": "stages.looking.report",
    "retry": "stages.cache.retry",
    "run": "stages.recipes.run",
    "search": "stages.search.search",
    "study_drift": "stages.studies.drift",
    "study_filters": "stages.studies.filters",
    "study_neighbours": "stages.studies.neighbours",
    "study_pca": "stages.studies.pca",
    "study_realism": "stages.studies.realism",
    "study_saliency": "stages.studies.saliency",
    "study_tsne": "stages.studies.tsne",
    "submit": "stages.heads.submit",
    "train_head": "stages.heads.train_head",
    "train_network": "stages.networks.train_network",
    "vectors": "stages.cache.export",
    "verify": "stages.cache.verify",
    "why": "stages.cache.why",
    "worth": "stages.heads.worth",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    # Imported at first use, so that `import featurecache` is fast and does not import torch.
    if name in _HOMES:
        return getattr(importlib.import_module(f"featurecache.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'featurecache' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
