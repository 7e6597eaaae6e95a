"""Networks that timm builds: from its own list, or as a repository of the hub describes them.

This module imports timm only when it is asked for a network. Then timm also gets to know the
networks of architectures/.
"""

from __future__ import annotations

import fnmatch
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from featurecache import keys
from featurecache.errors import BackboneUnavailable, BadInput, UnknownName
from featurecache.features.hub_weights import download, download_file
from featurecache.features.trained_networks import DESCRIPTION, trained_network
from featurecache.text import one_line

# AdvProp weights: Xie et al., CVPR 2020, as timm names them.
ALIASES = {f"efficientnet_b{n}_ap": f"tf_efficientnet_b{n}.ap_in1k" for n in range(9)} | {
    f"efficientnet_lite{n}": f"tf_efficientnet_lite{n}.in1k" for n in range(3)
}
HUB = "hf-hub:"  # begins the name of a repository of the hub
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_STEP = 32  # pixels between the sizes to suggest for a network that has no patches


@dataclass(frozen=True)
class TimmModel:
    """What timm builds a network from, before it has weights. `model` is its name in keys."""

    model: str
    architecture: str
    config: Any  # timm's PretrainedCfg: where the weights are, and the preprocessing
    arguments: Mapping[str, Any] = field(default_factory=dict)  # of a repository of the hub
    code: ClassVar[Mapping[str, str]] = {}  # timm's is recorded with every shard, by its version

    def build(self, **options: Any) -> Any:
        """timm's network; `options` are those of timm.create_model."""
        timm = _timm()

        options = {"pretrained_cfg": self.config, **self.arguments, **options}
        return timm.create_model(self.architecture, **options)

    def build_meta(self, size: int | None = None) -> Any:
        """The network without memory or arithmetic, so that building it and a pass are fast. `size`
        is only for a network that is built for one size of pictures."""
        import torch

        options = {} if size is None else {"img_size": size}
        with torch.device("meta"):
            return self.build(num_classes=0, **options).eval()

    def build_pretrained(self, classifier: bool, **options: Any) -> Any:
        """The network with the weights of the hub. Raises BackboneUnavailable."""
        if not self.config.has_weights:
            raise BackboneUnavailable(
                f"backbone {self.model} has no published weights; pass --weights FILE "
                "(.safetensors or .pth; in a configuration network.weights, without pretrained), "
                "or train it with train-network and name its run"
            )

        def create() -> Any:
            # Load the full network, then remove the classifier. With num_classes=0 timm accepts a
            # file that lacks tensors, which would stay random.
            module = self.build(pretrained=True, **options)
            if not classifier:
                module.reset_classifier(0)
            return module

        files = [self.config.hf_hub_filename or "model.safetensors", "pytorch_model.bin"]
        return download(self.model, "weights", self.config.hf_hub_id, files, create)

    @cached_property
    def data(self) -> Mapping[str, Any]:
        """The preprocessing that the weights were trained with."""
        return preprocessing_of(self.config.to_dict())

    @property
    def size(self) -> int:
        """The size of pictures, in pixels, that the network is built for unless told otherwise."""
        return int(self.data["input_size"][-1])

    def check_size(self, size: int) -> None:
        """Raise BadInput, with the nearest sizes, if timm does not build the network for it."""
        if not self.config.fixed_input_size or size == self.size:
            return
        patch = _patch_of(self.build_meta())
        problem = self._problem(size, patch)
        if problem is None:
            return
        step = patch if patch > 1 else _STEP
        lower = [n for n in range(size // step * step, 0, -step)[:3] if n != size]
        higher = [lower[0] + step * n for n in (1, 2, 3)] if lower else [step]
        near = [
            next((n for n in sizes if self._problem(n, patch) is None), None)
            for sizes in (lower, higher)
        ]
        choices = " or ".join(str(n) for n in near if n is not None)
        advice = f"--input-size {choices} is the nearest, or leave" if choices else "leave"
        raise BadInput(
            f"backbone {self.model} does not take input size {size}: {problem}; {advice} it out "
            f"to use {self.size}"
        )

    def _problem(self, size: int, patch: int) -> str | None:
        """Why timm can't run the network at this size; None if it can."""
        import torch

        if size % patch:  # timm would cut off the rest of the picture, or refuse
            return f"it is not a multiple of the patch size {patch}"
        try:
            network = self.build_meta(size)
            with torch.no_grad():
                network(torch.zeros(1, 3, size, size, device="meta"))
        except NotImplementedError:  # it needs numbers, which the meta device lacks
            return None
        except Exception as error:  # noqa: BLE001 - whatever a network raises for a wrong size
            if "img_size" in str(error) and isinstance(error, TypeError):
                return "timm builds it for one size only"
            return one_line(error) or "timm can't build it for this size"
        return None

    def resized(self, network: Any, size: int) -> Any:
        """`network`, which has the model's own size, for pictures of `size`: timm resamples the
        tensors that depend on it (position embeddings), as it does for its own weights."""
        import torch

        if not self.config.fixed_input_size or size == self.size:
            return network
        overlay = {
            "state_dict": network.state_dict(),
            "source": None,
            "custom_load": False,
            "num_classes": 0,  # equal to the network's, so that timm accepts no missing tensor
            "label_offset": 0,
        }
        try:
            with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
                warnings.simplefilter("ignore")  # of torch, about how timm interpolates
                module = self.build(
                    pretrained=True, num_classes=0, img_size=size, pretrained_cfg_overlay=overlay
                )
        except Exception as error:
            raise BadInput(
                f"backbone {self.model}: timm can't resample its weights for input size {size} "
                f"({one_line(error)}); leave --input-size out to use {self.size}"
            ) from error
        module.pretrained_cfg = module.default_cfg = self.config.to_dict()  # without the tensors
        return module.eval().requires_grad_(False)


def preprocessing_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The preprocessing in a pretrained_cfg, with timm's defaults for what it lacks."""
    import timm

    data: Mapping[str, Any] = timm.data.resolve_data_config(pretrained_cfg=config)
    return data


def _patch_of(network: Any) -> int:
    """The size of a transformer's patches in pixels; 1 for a network without."""
    patch = getattr(getattr(network, "patch_embed", None), "patch_size", 1)
    return int(patch if isinstance(patch, int) else patch[-1])


def _timm() -> Any:
    """timm, which knows the networks of architectures/."""
    import timm

    from featurecache.architectures import registration  # noqa: F401

    return timm


def find_model(name: str) -> TimmModel:
    """The network called `name`: an alias, timm's name, or hf-hub:owner/name.

    Raises UnknownName; for a repository of the hub also BadInput and BackboneUnavailable.
    """
    timm = _timm()

    if name.startswith(HUB):
        return _hub_model(name)
    trained = trained_network(name)
    if trained is not None and trained.model.startswith(HUB):
        return _hub_model(trained.model)
    model = check_name(name)
    return TimmModel(model, model.split(".")[0], timm.get_pretrained_cfg(model))


def keras_model(model: TimmModel, weights: str | Path) -> TimmModel:
    """Keras' network in place of timm's of the same name, for a file of Keras. Raises BadInput."""
    from featurecache.architectures.keras_networks import KERAS_NETWORKS

    if model.architecture in KERAS_NETWORKS.values():
        return model
    if model.architecture not in KERAS_NETWORKS:
        raise BadInput(
            f"--weights {weights}: {Path(weights).suffix} files are read for "
            f"{', '.join(KERAS_NETWORKS)}, not for {model.model}; save its weights as .safetensors"
        )
    return find_model(KERAS_NETWORKS[model.architecture])


def check_name(name: str) -> str:
    """timm's full name, with its tag, for an alias or a timm name. Raises UnknownName; BadInput for
    a path that is not the run of a network."""
    timm = _timm()

    trained = trained_network(name)
    model = ALIASES.get(name, name) if trained is None else trained.model
    if not timm.is_model(model):
        if Path(name).name != name and not name.startswith(HUB):
            what = f"no {DESCRIPTION} in it" if Path(name).is_dir() else "no such folder"
            if (Path(name) / "fold-1" / DESCRIPTION).is_file():
                what = f"it has a network for each fold; name one, such as {Path(name) / 'fold-1'}"
            raise BadInput(f"backbone {name}: not the run of train-network ({what})")
        raise UnknownName("backbone", name, backbone_names())
    try:
        config = timm.get_pretrained_cfg(model)
    except RuntimeError:
        architecture = model.split(".")[0]
        raise UnknownName("backbone", name, timm.list_pretrained(f"{architecture}*")) from None
    tag = getattr(config, "tag", None)
    return f"{model.split('.')[0]}.{tag}" if tag else model.split(".")[0]


def backbone_names() -> list[str]:
    """All backbone names, for hints about an unknown name."""
    timm = _timm()

    return sorted({*ALIASES, *timm.list_models(), *timm.list_pretrained()})


def search_names(word: str) -> list[str]:
    """The aliases, the networks of architectures/ and timm's pretrained networks whose name
    contains `word`, in any case; it may have the wildcards * and ?."""
    timm = _timm()
    from featurecache.architectures.keras_networks import KERAS_NETWORKS
    from featurecache.architectures.registration import ARCHITECTURES

    extra = {*ARCHITECTURES, *KERAS_NETWORKS.values()}
    names = [*ALIASES, *sorted({*extra, *timm.list_pretrained()})]
    return [name for name in names if fnmatch.fnmatchcase(name.lower(), f"*{word.lower()}*")]


def _hub_model(name: str) -> TimmModel:
    """The network that the config.json of a repository describes.

    Its name in keys is timm's, with the arguments that the network is built with, because the same
    repository may have another configuration tomorrow (law 2, "The key says everything").
    """
    timm = _timm()

    repository = name.removeprefix(HUB)
    if not _REPOSITORY.fullmatch(repository):
        raise BadInput(f"backbone {name}: expected {HUB}OWNER/NAME, or {HUB}OWNER/NAME@REVISION")

    what = f"backbone {name}: the config.json of this repository"
    download_file(name, repository, "config.json")
    try:
        config, architecture, arguments = timm.models.load_model_config_from_hf(repository)
        described = timm.models.PretrainedCfg(**config)
    except Exception as error:
        raise BadInput(
            f"{what} does not describe a network of timm ({type(error).__name__}: "
            f"{one_line(error)}); `featurecache backbones WORD` searches timm's own networks"
        ) from error
    if not timm.is_model(architecture):
        raise UnknownName("architecture", architecture, timm.list_models(), where=what)
    model = f"{architecture}.{described.tag}"
    if arguments:
        model = architecture + keys.canonical(dict(arguments)).decode()
    elif model not in timm.list_pretrained():
        model = architecture
    return TimmModel(model, architecture, described, dict(arguments))
