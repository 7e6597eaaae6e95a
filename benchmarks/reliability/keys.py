"""The key: it changes with everything that changes a vector, and with nothing else."""

from __future__ import annotations

import contextlib
import copy
import json
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import yaml

from benchmarks.reliability.harness import Tally, Writer, write_images
from benchmarks.reliability.in_process import (
    NETWORK,
    Options,
    networks_loaded_once,
    resolved,
    run_command,
)
from featurecache import keys, versions
from featurecache.features import backbones, commit_records, engines
from featurecache.features.backbones import Backbone
from featurecache.features.timm_models import ALIASES
from featurecache.filling import request as resolve_stage
from featurecache.images import views
from featurecache.stages.cache.why import why

TREE = [
    {"Fliplr": {"p": 0.5}},
    {"LinearContrast": {"alpha": {"range": [0.75, 1.5]}, "per_channel": False}},
    {"OneOf": {"children": [{"Rotate": {"rotate": {"choice": [15, 30]}}}, {"Flipud": {"p": 1.0}}]}},
]
IMAGES, SHARD_ROWS = 16, 8


@contextlib.contextmanager
def _counted() -> Iterator[list[int]]:
    """The sizes of the batches that the network runs meanwhile, with their padding."""
    seen: list[int] = []
    start = engines.Engine.start

    def counted(engine: engines.Engine, pixels: np.ndarray) -> Any:
        seen.append(len(pixels))
        return start(engine, pixels)

    with mock.patch.object(engines.Engine, "start", counted):
        yield seen


@dataclass(frozen=True)
class Change:
    """One way to ask otherwise: other options, other attributes of modules, other files."""

    options: Options = field(default_factory=dict)
    patches: tuple[tuple[Any, str, Any], ...] = ()

    @contextlib.contextmanager
    def made(self) -> Iterator[None]:
        views._built.cache_clear()  # it remembers keys, which a patch may change
        with contextlib.ExitStack() as stack:
            for target, name, value in self.patches:
                stack.enter_context(mock.patch.object(target, name, value))
            yield
        views._built.cache_clear()


def key_fields(writer: Writer, size: int, folder: Path) -> Tally:
    """Every leaf of a real key is changed, one at a time: nothing may be had from the cache, and
    `why` must name that field. Then everything that is no part of the key is changed: nothing may
    be computed. There is a number of leaves and not of trials, so `size` has no say."""
    with networks_loaded_once():
        asked = _first(folder)
        with _counted() as batches:
            code, text = run_command(writer, "featurize", asked)
        if code != 0:
            raise RuntimeError(f"the first featurize gave {code}: {text}")
        whole = len(batches)
        bad: list[str] = []
        fields = list(_leaves(_key(asked)))
        for path in fields:
            name = ".".join(map(str, path))
            try:
                change = _reached(path, _key(asked), asked, folder)
            except KeyError:
                bad.append(f"{name}: a field that this harness can't change")
                continue
            with change.made():
                wrong = _not_missed(writer, asked | change.options, name, whole, folder)
            bad += [f"{name} changed: {text}" for text in wrong]
        not_missed = len(bad)
        outside = _outside(asked, folder)
        for name, change in outside.items():
            with change.made(), _counted() as batches:
                code, text = run_command(writer, "featurize", asked | change.options)
            if batches or code != 0:
                bad.append(
                    f"{name}: {len(batches)} batches computed, exit code {code} {text[:200]}"
                )
    said = (
        f"{len(fields)} fields of a key changed: {not_missed} did not miss, or `why` did not name "
        f"them; {len(outside)} changes outside of it: {len(bad) - not_missed} not hit"
    )
    return Tally(len(fields) + len(outside), len(bad), said, tuple(bad[:5]))


def _first(folder: Path) -> Options:
    """What is in the cache: the options of the `featurize` that fills it."""
    data = write_images(folder / "data", IMAGES)
    policy = folder / "policy.yaml"
    policy.write_text(yaml.safe_dump({"description": "First.", "augmenters": TREE}))
    return {
        "data": data, "policy": [f"{policy}_1"], "backbone": NETWORK, "cache": folder / "cache",
        "input_size": 32, "engine": "torch-cpu", "workers": 0, "shard_rows": SHARD_ROWS,
    }  # fmt: skip


def _key(asked: Options) -> keys.Json:
    request = resolved(asked | {"cache": asked["cache"] / "none"})  # the naive one has no spaces
    return request.vector_space(request.views[0], request.backbones[0]).key


def _leaves(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value of a key that is no mapping and no list."""
    if isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(inner, (*at, name))
    else:
        yield at


def _with(value: Any, path: Sequence[Any], new: Any) -> Any:
    """A copy of `value` in which the leaf at `path` is `new`."""
    changed = copy.deepcopy(value)
    inner = changed
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = new
    return changed


def _another(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1 if isinstance(value, int) else value / 2
    return f"other {value}"


OTHER_SETTING = {"input_size": 40, "crop": 0.5, "interpolation": "nearest"}


def _reached(path: tuple[Any, ...], key: keys.Json, asked: Options, folder: Path) -> Change:
    """The change of a run that changes just this leaf of its key: by an option of the command
    where one reaches it. Raises KeyError for a leaf that nobody has thought of."""
    old = key
    for name in path:
        old = old[name]
    new = _another(old)
    match path:
        case ("format",):
            return Change(patches=((keys, "FORMAT_VERSION", new),))
        case ("decode", name):
            rule = keys.DECODE_RULE | {name: new}
            return Change(patches=((keys, "DECODE_RULE", rule),))
        case ("view", "policy", "library"):
            return Change(patches=((versions, "_version", lambda name: "99.9"),))
        case ("view", "policy", "tree", *inside):
            file = folder / "changed" / "policy.yaml"
            file.parent.mkdir(exist_ok=True)
            tree = _with(TREE, inside, new)
            file.write_text(yaml.safe_dump({"augmenters": tree}))
            return Change({"policy": [f"{file}_1"]})
        case ("view", "draw"):
            return Change({"policy": [asked["policy"][0].removesuffix("_1") + "_2"]})
        case ("view", "seed"):
            return Change({"seed": 1})
        case ("backbone", "weights"):
            return Change({"weights": _weights(folder / "changed.safetensors", changed=True)})
        case ("backbone", "input_size" | "crop" | "interpolation" as name):
            return Change({name: OTHER_SETTING[name]})
        case ("precision",):
            return Change({"precision": "bf16"})
        case ("dtype",):
            made = keys.vector_key
            return Change(
                patches=((keys, "vector_key", lambda *a: made(*a) | {"dtype": "float16"}),)
            )
        # No option reaches these: timm's model decides them, so here the model does.
        case ("backbone", "name"):
            return _network(lambda network: replace(network, model=new))
        case ("backbone", "crop_mode" | "mean" | "std" as name, *inside):
            value = tuple(_with(key["backbone"][name], inside, new)) if inside else "squash"
            return _network(
                lambda network: replace(
                    network, preprocess=replace(network.preprocess, **{name: value})
                )
            )
        case ("backbone", "layer" | "pooling" as name):
            # Of the layer that is read by default, an option changes both: here one by itself.
            key_of = Backbone.key
            return Change(
                patches=((Backbone, "key", lambda network: key_of(network) | {name: new}),)
            )
    raise KeyError(path)


def _network(change: Callable[[Backbone], Backbone]) -> Change:
    """A network that differs from timm's in one thing that is no option."""

    def load(*names: Any, **given: Any) -> Backbone:
        return change(loaded(*names, **given))

    loaded = resolve_stage.load_backbone
    return Change(
        patches=((resolve_stage, "load_backbone", load), (backbones, "load_backbone", load))
    )


def _weights(path: Path, changed: bool = False) -> Path:
    """The packaged weights as a file of .safetensors or .pth; `changed` by one number."""
    import torch
    from safetensors.torch import save_file

    module = backbones.load_backbone(NETWORK, None, input_size=32, crop=None, interpolation=None)
    tensors = {name: tensor.clone() for name, tensor in module.module.state_dict().items()}
    if changed:
        next(iter(tensors.values())).view(-1)[0] += 0.25
    if path.suffix == ".pth":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    return path


def _not_missed(writer: Writer, asked: Options, name: str, whole: int, folder: Path) -> list[str]:
    """What is wrong after one field was changed: all must be computed, and `why` must name it."""
    cache = folder / "copy"
    shutil.copytree(asked["cache"], cache)
    wrong = []
    try:
        if writer.name == "ours":
            names = ("data", "policy", "backbone", "weights", "input_size", "crop",
                     "interpolation", "precision", "seed")  # fmt: skip
            (found,) = why(cache=cache, **{n: asked[n] for n in names if n in asked})
            named = [text.split(": ")[0] for text in found.differs]
            if found.hits or named != [name]:
                wrong.append(f"why says {found.hits} hits, {named}")
        with _counted() as batches:
            code, text = run_command(writer, "featurize", asked | {"cache": cache})
        if code != 0:
            wrong.append(f"exit code {code}: {text[-200:]}")
        elif len(batches) < whole:
            wrong.append(f"{len(batches)} batches computed, of {whole}")
    finally:
        shutil.rmtree(cache)
    return wrong


def _outside(asked: Options, folder: Path) -> dict[str, Change]:
    """Changes that no key may see."""
    data, cache, policy = asked["data"], asked["cache"], asked["policy"][0]
    images = sorted(data.glob("*/*/*.png"))
    defaults = _key(asked)["backbone"]

    def placed(place: Callable[[int, Path], str]) -> Change:
        """The same images at other places of another folder."""
        root = folder / f"data {secrets.token_hex(4)}"
        for number, image in enumerate(images):
            path = root / place(number, image)
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(image, path)
        return Change({"data": root})

    def written(text: str, name: str = "policy.yaml") -> Change:
        """The same policy, written otherwise."""
        path = folder / f"policy {secrets.token_hex(4)}" / name
        path.parent.mkdir()
        path.write_text(text)
        return Change({"policy": [f"{path}_1"]})

    def weights(name: str, **more: Any) -> Change:
        return Change({"weights": _weights(folder / name), **more})

    table = folder / "table.csv"
    lines = [f"{image},{'xy'[i % 2]},train" for i, image in enumerate(reversed(images))]
    table.write_text("\n".join(["path,label,split", *lines]) + "\n")
    copies = placed(lambda i, p: str(p.relative_to(data)))
    shutil.copyfile(images[0], copies.options["data"] / "train" / "owl" / "again.png")
    link, moved = folder / "link", folder / "moved cache"
    link.symlink_to(data, target_is_directory=True)
    shutil.copytree(cache, moved)
    turned = [
        {name: dict(reversed(list(given.items())))} for one in TREE for name, given in one.items()
    ]
    plain = yaml.safe_dump({"augmenters": TREE})
    other_order = yaml.safe_dump({"augmenters": turned, "description": ""}, sort_keys=False)
    quoted = plain.replace("Fliplr", "'Fliplr'").replace("children", '"children"')
    respelled = plain.replace("0.75", "7.50e-1").replace("p: 0.5", "p: .50").replace("1.0", "1.00")
    return {
        "the data's place": placed(lambda i, p: str(p.relative_to(data))),
        "file names": placed(lambda i, p: f"train/{p.parent.name}/new {i}.png"),
        "suffixes": placed(lambda i, p: f"train/{p.parent.name}/{i}.jpg"),
        "listing order": placed(lambda i, p: f"train/cat/{99 - i}.png"),
        "labels": placed(lambda i, p: f"train/{'abcd'[i % 4]}/{i}.png"),
        "class names": placed(lambda i, p: f"train/new {p.parent.name}/{p.name}"),
        "splits": placed(lambda i, p: f"{('train', 'val', 'test')[i % 3]}/cat/{i}.png"),
        "part of the images": placed(lambda i, p: f"train/cat/{i % 5}.png"),
        "copies of an image": copies,
        "a table": Change({"data": table}),
        "a link": Change({"data": link}),
        "workers": Change({"workers": 2}),
        "engine": Change({"engine": "openvino"}),
        "micro-batch": Change(patches=((engines, "torch_engine", _engine_of(4)),)),
        "shard rows": Change({"shard_rows": 3}),
        "time": Change(patches=((commit_records, "datetime", _clock()),)),
        "host name": Change(patches=((socket, "gethostname", lambda: "elsewhere"),)),
        "the cache's place": Change({"cache": moved}),
        "weights as .safetensors": weights("same.safetensors"),
        "weights as .pth": weights("same.pth"),
        "the network's full name": weights("named.pth", backbone=ALIASES[NETWORK]),
        "the default crop": Change({"crop": defaults["crop"]}),
        "the default interpolation": Change({"interpolation": defaults["interpolation"]}),
        "the default seed": Change({"seed": 0}),
        "the default precision": Change({"precision": "f32"}),
        "the view without its draw": Change({"policy": [policy.removesuffix("_1")]}),
        "the policy's name": written(plain, "renamed.yaml"),
        "the policy's place": written(plain),
        "comments and description": written(f"# new\ndescription: other\n{plain}# end\n"),
        "the order of keys": written(other_order),
        "brackets": written(json.dumps({"augmenters": TREE}, indent=2)),
        "quotes": written(quoted),
        "spelling of a number": written(respelled),
    }


def _clock() -> mock.Mock:
    """The module datetime, at a time that does not pass."""
    time = "2001-02-03T04:05:06+00:00"
    return mock.Mock(**{"datetime.now.return_value.isoformat.return_value": time})


def _engine_of(rows: int) -> Any:
    def other(*given: Any) -> engines.Engine:
        engine = torch_engine(*given)
        engine.micro_batch = rows
        return engine

    torch_engine = engines.torch_engine
    return other
