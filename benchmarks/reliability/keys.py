"""The key: it changes with everything that changes a vector, and with nothing else.

In one process, through the real command line, with networks loaded once.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import io
import json
import secrets
import shutil
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import hypothesis
import numpy as np
import yaml
from hypothesis import strategies as st
from PIL import Image

from benchmarks.reliability.harness import Tally, Writer, write_images
from benchmarks.reliability.jobs import NOTICED
from featurecache import keys, versions
from featurecache.commands.printing import SOME_FAILED
from featurecache.features import backbones, commit_records, engines
from featurecache.features.backbones import Backbone
from featurecache.features.engines import run_rows
from featurecache.features.timm_models import ALIASES
from featurecache.filling import request as resolve_stage
from featurecache.filling import vectors as featurize_stage
from featurecache.filling.request import Request, resolve_request
from featurecache.images import views
from featurecache.images.decode import Undecodable, decode
from featurecache.images.policies import find_policy
from featurecache.images.views import View
from featurecache.stages.cache.why import why

NETWORK = "efficientnet_lite0"
Options = dict[str, Any]  # arguments of `featurize`


# Commands in this process.


_load_once = functools.cache(backbones.load_backbone)
_open_engine = engines.open_engine
_opened: dict[object, engines.Engine] = {}


def _open_once(backbone: Backbone, engine: str, precision: str) -> engines.Engine:
    p = backbone.preprocess  # of where the crop is made, an engine knows nothing
    name = (backbone.weights, p.input_size, p.mean, p.std, engine, precision)
    if name not in _opened:
        _opened[name] = _open_engine(backbone, engine, precision)
    return _opened[name]


@contextlib.contextmanager
def _networks_once() -> Iterator[None]:
    """Load each network once, and compile it once for each size: that takes seconds."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two for so small a picture wait for each other
    with (
        mock.patch.object(backbones, "load_backbone", _load_once),
        mock.patch.object(resolve_stage, "load_backbone", _load_once),
        mock.patch.object(engines, "open_engine", _open_once),
        mock.patch.object(featurize_stage, "open_engine", _open_once),
    ):
        yield
    torch.set_num_threads(threads)


def _command(writer: Writer, verb: str, options: Mapping[str, Any]) -> tuple[int, str]:
    """Run one command here: its exit code and what it printed."""
    words = ["featurecache", verb]
    for name, value in options.items():
        for one in value if isinstance(value, list) else [value]:
            words += [f"--{name.replace('_', '-')}", str(one)]
    said = io.StringIO()
    with (
        mock.patch.object(sys, "argv", words),
        mock.patch("signal.signal"),  # the handlers of a command are not for who calls it here
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
    ):
        try:
            writer.main()
        except SystemExit as end:
            return int(end.code or 0), said.getvalue()
        except NOTICED as error:  # of the naive one, which explains nothing
            return 1, f"{type(error).__name__}: {error}"
    return 0, said.getvalue()


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


# Each field of the key, and each thing outside of it.

TREE = [
    {"Fliplr": {"p": 0.5}},
    {"LinearContrast": {"alpha": {"range": [0.75, 1.5]}, "per_channel": False}},
    {"OneOf": {"children": [{"Rotate": {"rotate": {"choice": [15, 30]}}}, {"Flipud": {"p": 1.0}}]}},
]
IMAGES, SHARD_ROWS = 16, 8


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
    with _networks_once():
        asked = _first(folder)
        with _counted() as batches:
            code, text = _command(writer, "featurize", asked)
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
                code, text = _command(writer, "featurize", asked | change.options)
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


def _resolved(asked: Options) -> Request:
    names = ("data", "cache", "policy", "backbone", "weights", "input_size", "crop",
             "interpolation", "precision", "seed")  # fmt: skip
    return resolve_request(**{name: asked[name] for name in names if name in asked})


def _key(asked: Options) -> keys.Json:
    request = _resolved(asked | {"cache": asked["cache"] / "none"})  # the naive one has no spaces
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
            code, text = _command(writer, "featurize", asked | {"cache": cache})
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


# Random configurations.

NAMES = ("first", "second")  # of policy files: few, so that a name comes back with another tree
NUMBERS = st.floats(0, 1).map(lambda value: round(value, 3))
RANGES = st.tuples(NUMBERS, NUMBERS).map(lambda pair: {"range": sorted(pair)})
SOME = st.one_of(NUMBERS, RANGES, st.lists(NUMBERS, min_size=1, max_size=3).map(
    lambda values: {"choice": values}))  # fmt: skip
ANGLES = st.integers(-90, 90)
LEAVES = st.one_of(
    st.builds(lambda p: {"Fliplr": {"p": p}}, NUMBERS),
    st.builds(lambda p: {"Flipud": {"p": p}}, NUMBERS),
    st.builds(lambda a: {"Rotate": {"rotate": a}}, ANGLES),
    st.builds(lambda s: {"GaussianBlur": {"sigma": s}}, SOME),
    st.builds(lambda a, p: {"LinearContrast": {"alpha": a, "per_channel": p}}, SOME, NUMBERS),
    st.builds(lambda m: {"MultiplyAndAddToBrightness": {"mul": m, "add": {"range": [-20, 20]}}},
              SOME),
    st.builds(lambda s: {"AdditiveGaussianNoise": {"scale": {"range": [0, s]}}},
              st.integers(1, 40)),
    st.builds(lambda p, k: {"CropAndPad": {"percent": {"range": [-p / 4, p / 4]}, "keep_size": k}},
              NUMBERS, st.booleans()),
    st.builds(lambda s: {"Resize": {"size": s}}, st.integers(8, 24)),
    st.builds(lambda s: {"Cutout": {"size": s, "squared": False}},
              NUMBERS.map(lambda n: 0.1 + n / 2)),
    st.just("AddToHueAndSaturation").map(lambda name: {name: {"value": {"range": [-30, 30]}}}),
    st.builds(lambda c: {"pillike.Autocontrast": {"cutoff": c}}, st.integers(0, 20)),
)  # fmt: skip
TREES = st.lists(
    st.recursive(
        LEAVES,
        lambda inner: st.one_of(
            st.builds(lambda c, r: {"Sequential": {"children": c, "random_order": r}},
                      st.lists(inner, min_size=1, max_size=3), st.booleans()),
            st.builds(lambda c: {"OneOf": {"children": c}},
                      st.lists(inner, min_size=1, max_size=3)),
            st.builds(lambda p, c: {"Sometimes": {"p": p, "then_list": [c]}}, NUMBERS, inner),
        ),
        max_leaves=4,
    ),
    min_size=1,
    max_size=3,
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One `featurize` into the cache; `staged`: after an `augment`."""

    images: int  # how many of the dataset are there by then
    name: str  # of the policy file, or "" for the view none
    tree: list[Any]
    draw: int
    staged: bool
    options: Options


OPTIONS = st.fixed_dictionaries(
    {"input_size": st.sampled_from([32, 40]), "shard_rows": st.integers(1, 8)},
    optional={
        "crop": st.sampled_from([0.5, 0.875, 1.0]),
        "interpolation": st.sampled_from(sorted(backbones.INTERPOLATIONS)),
        "seed": st.integers(0, 2),
    },
)
RUNS = st.lists(
    st.builds(Run, st.integers(1, 12), st.sampled_from([*NAMES, *NAMES, ""]), TREES,
              st.integers(1, 3), st.booleans(), OPTIONS),
    min_size=1,
    max_size=4,
)  # fmt: skip
# Pictures by number: two with the same number are copies; BROKEN is no picture.
BROKEN = 9
PICTURES = st.lists(st.integers(0, BROKEN), min_size=3, max_size=12)


def configurations(writer: Writer, size: int, folder: Path) -> Tally:
    """Random images, policies and settings, run one after the other into one cache: every row that
    is had from it equals the one that is computed past it. The rows of OpenVINO do not depend on
    their neighbours, so the same bytes are asked for."""
    bad: list[str] = []
    tried = rows = 0

    @hypothesis.settings(
        max_examples=size,
        database=None,
        deadline=None,
        derandomize=True,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(PICTURES, RUNS)
    def trial(pictures: list[int], runs: list[Run]) -> None:
        nonlocal tried, rows
        place = folder / f"{tried}"
        tried += 1
        wrong: list[str] = []
        for run in runs:
            options = _prepared(pictures, run, place)
            if run.staged and run.name and writer.name == "ours":
                names = ("data", "cache", "policy", "seed", "workers", "shard_rows")
                _must(writer, "augment", {n: options[n] for n in names if n in options})
            try:
                _must(writer, "featurize", options)
                expected = _directly(options)
                found = _held(writer, options, expected)
                rows += len(expected)
                differ = [item for item in expected if found.get(item) != expected[item]]
            except NOTICED as error:
                wrong.append(f"{type(error).__name__}: {error}"[:200])
                continue
            if differ:
                wrong.append(f"{len(differ)} of {len(expected)} rows are missing or others")
        if wrong:
            bad.append(f"{pictures} {runs}: {'; '.join(wrong)}")
        shutil.rmtree(place)

    with _networks_once():
        trial()
    said = (
        f"{tried} random configurations, {rows} rows compared with rows computed past the cache: "
        f"{len(bad)} configurations with a wrong or missing row"
    )
    return Tally(tried, len(bad), said, tuple(bad[:5]))


def _prepared(pictures: Sequence[int], run: Run, place: Path) -> Options:
    """Write the dataset and the policy of a run: the options of its command."""
    data = place / "data" / "cat"
    data.mkdir(parents=True, exist_ok=True)
    for position, number in enumerate(pictures[: run.images]):
        # Later pictures come before earlier ones in the listing.
        (data / f"{99 - position}.png").write_bytes(_picture(number))
    options = {"data": place / "data", "cache": place / "cache", "backbone": NETWORK,
               "engine": "openvino", "workers": 0, "policy": ["none"]}  # fmt: skip
    if run.name:
        policy = place / f"{run.name}.yaml"
        policy.write_text(yaml.safe_dump({"augmenters": run.tree}))
        options["policy"] = [f"{policy}_{run.draw}"]
    return options | run.options


@functools.cache
def _picture(number: int) -> bytes:
    if number == BROKEN:
        return b"no picture"
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 256, (*rng.integers(8, 20, 2), 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, ("PNG", "JPEG", "BMP")[number % 3])
    return out.getvalue()


def _must(writer: Writer, verb: str, options: Options) -> None:
    code, text = _command(writer, verb, options)
    if code not in (0, SOME_FAILED):
        raise RuntimeError(f"{verb} gave {code}: {text[-200:]}")


def _directly(options: Options) -> dict[bytes, bytes]:
    """item -> vector of every picture that is one, from its bytes alone and past every cache."""
    views._built.cache_clear()
    view = _view(options)
    given = {name: options.get(name) for name in ("input_size", "crop", "interpolation")}
    network = backbones.load_backbone(NETWORK, None, **given)
    engine = engines.open_engine(network, "openvino", "f32")
    found: dict[bytes, np.ndarray] = {}
    for path in options["data"].glob("*/*"):
        data = path.read_bytes()
        item = hashlib.sha256(data).digest()
        with contextlib.suppress(Undecodable):
            found[item] = network.preprocess(view.picture(decode(data), item))
    if not found:
        return {}
    vectors = run_rows(engine, np.stack(list(found.values())))
    return {item: row.tobytes() for item, row in zip(found, vectors, strict=True)}


def _view(options: Options) -> View:
    if options["policy"] == ["none"]:
        return View(None)
    name, _, draw = options["policy"][0].rpartition("_")
    return View(find_policy(name), int(draw), options.get("seed", 0))


def _held(writer: Writer, options: Options, items: Iterable[bytes]) -> dict[bytes, bytes]:
    """The rows that the cache gives for these options; KeyError for one that it does not hold."""
    if writer.name != "ours":
        return writer.rows(options["cache"] / f"{_view(options).name}_{NETWORK}")
    request = _resolved(options)
    space = request.vector_space(request.views[0], request.backbones[0])
    vectors, fine = space.vectors(list(items))
    rows = zip(items, vectors, fine, strict=True)
    return {item: row.tobytes() for item, row, right in rows if right}
