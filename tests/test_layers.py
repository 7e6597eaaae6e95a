"""The way through the house: imports run downward only, and heavy libraries have one room each."""

from __future__ import annotations

import ast
import functools
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from featurecache.features.store import Cache
from featurecache.storage.file_marks import QUIET_SECONDS

PACKAGE = Path(__file__).parent.parent / "featurecache"

# Imports run downward only: a room may import the rooms of lower floors, and its own. Rooms of one
# floor do not know each other.
FLOORS = (
    ("text",),
    ("errors",),
    ("byte_sizes", "interpreter", "machine", "versions"),
    ("storage",),
    ("csv_files", "items", "json_files", "keys", "notebook"),
    ("generator_files", "settings", "yaml_files"),
    ("executors",),
    ("architectures", "training"),
    ("images", "features", "heads", "networks", "generators"),
    ("generated_pictures", "seen_items", "study"),
    ("lookup", "filling"),
    ("runs",),
    ("stages",),
    ("adapters",),
    ("commands",),
    ("cli",),
    ("__main__",),
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
WINGS = FLOOR_OF["images"]
# What a group of stages may import of the others.
GROUPS = {
    "cache": set(),
    "heads": set(),
    "networks": {"cache", "heads"},
    "generators": {"cache", "heads"},
    "search": {"cache", "heads"},
    "studies": {"heads"},
    "looking": {"heads", "studies"},
    "recipes": {"cache", "heads", "networks", "generators", "studies", "looking"},
}

HOMES = {  # the one room of each heavy library, and of what only the command line needs
    "imgaug": {"featurecache.images.augmenters", "featurecache.images.policies"},
    "torchvision": {"featurecache.images.transforms"},
    "simplejpeg": {"featurecache.images.decode"},
    "timm": {
        "featurecache.architectures.keras_networks",
        "featurecache.architectures.registration",
        "featurecache.features.timm_models",
    },
    "openvino": {"featurecache.features.openvino_library"},
    "h5py": {"featurecache.features.keras_files", "featurecache.features.shards"},
    "jinja2": {"featurecache.study.pages"},
    "tensorboard": {"featurecache.study.events"},
    "markupsafe": {"featurecache.study.pages"},
    "matplotlib": {"featurecache.study.figures", "featurecache.study.sheets"},
    "datasets": {"featurecache.images.layouts.hub_datasets"},
    "pyarrow": {
        "featurecache.images.layouts.hub_datasets",
        "featurecache.images.layouts.indexes",
        "featurecache.stages.heads.evaluate",
        "featurecache.stages.cache.export",
    },
    "click": {
        "featurecache.cli",
        "featurecache.commands.options",
        "featurecache.commands.cache",
        "featurecache.commands.generators",
        "featurecache.commands.heads",
        "featurecache.commands.looking",
        "featurecache.commands.networks",
        "featurecache.commands.printing",
        "featurecache.commands.recipes",
        "featurecache.commands.setting_options",
        "featurecache.commands.study",
    },
    "obstore": {"featurecache.storage.object_store"},
    "botocore": {"featurecache.storage.s3_settings"},
    "ray": {"featurecache.executors.ray_cluster"},
    "tqdm": {"featurecache.executors.progress_bars"},
    "rich": {"featurecache.commands.progress", "featurecache.commands.terminal"},
}
DRAWERS = {"utils", "util", "helpers", "helper", "common", "misc", "base", "tools"}


def modules() -> dict[str, str]:
    """The source of each module of the package, by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = path.read_text(encoding="utf-8")
    return found


@functools.cache
def imported(name: str, source: str, known: frozenset[str]) -> tuple[tuple[int, str], ...]:
    """(line, module) of every import of a module, in functions and by importlib too."""
    return tuple(_imports(name, source, known))


def _imports(name: str, source: str, known: frozenset[str]) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = name.split(".") if name in packages(known) else name.split(".")[:-1]
                above = package[: len(package) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield node.lineno, inner if inner in known else base
        elif isinstance(node, ast.Call) and node.args:
            called = ast.unparse(node.func).split(".")[-1]
            first = node.args[0]
            if called in ("import_module", "__import__") and isinstance(first, ast.Constant):
                yield node.lineno, str(first.value)


@functools.cache
def packages(known: frozenset[str]) -> set[str]:
    return {name.rpartition(".")[0] for name in known}


def allowed(importer: str, target: str) -> bool:
    """May a module of the package import another one?"""
    if target in ("featurecache", importer):
        return True  # the package itself holds only the version
    if importer == "featurecache":
        return False  # it finds its functions by name
    room, other = importer.split(".")[1], target.split(".")[1]
    if room not in FLOOR_OF or other not in FLOOR_OF:
        return False
    if room == other == "stages":
        group, other_group = importer.split(".")[2], target.split(".")[2]
        return group == other_group or other_group in GROUPS.get(group, ())
    if room == other:
        return True
    if room == "commands":  # they see stages, and not what stages are made of
        return other == "stages" or FLOOR_OF[other] < WINGS
    if room == "cli":
        return other == "commands" or FLOOR_OF[other] < WINGS
    return FLOOR_OF[other] < FLOOR_OF[room]


def violations(sources: dict[str, str]) -> list[str]:
    """What breaks a rule of the house, one line each."""
    known = frozenset(sources)
    found = []
    below: dict[str, set[str]] = {}
    for name, source in sources.items():
        if DRAWERS & set(name.split(".")):
            found.append(f"{name}: no drawers")
        for line, target in imported(name, source, known):
            library = target.split(".")[0]
            if library in HOMES and name not in HOMES[library]:
                found.append(f"{name}:{line}: {library} lives in {sorted(HOMES[library])}")
            if library == "featurecache" and not allowed(name, target):
                found.append(f"{name}:{line}: may not import {target}")
            if library == "featurecache" and target != name:
                below.setdefault(name, set()).add(target)
    return found + [f"a circle: {name}" for name in known if name in reached(name, below)]


def reached(name: str, below: dict[str, set[str]]) -> set[str]:
    """The modules that an import of `name` imports, further down too."""
    found: set[str] = set()
    todo = list(below.get(name, ()))
    while todo:
        target = todo.pop()
        if target not in found and target != "featurecache":
            found.add(target)
            todo += below.get(target, ())
    return found


def test_the_house_keeps_its_rules() -> None:
    assert violations(modules()) == []


def test_every_room_is_known() -> None:
    """A new module on no floor would be checked by nothing."""
    rooms = {name.split(".")[1] for name in modules() if "." in name}
    assert rooms == set(FLOOR_OF)
    groups = {name.split(".")[2] for name in modules() if name.startswith("featurecache.stages.")}
    assert groups == set(GROUPS)
    homes = {home for names in HOMES.values() for home in names}
    assert homes <= set(modules())


@pytest.mark.parametrize("library", HOMES)
def test_a_library_is_used_where_it_lives(library: str) -> None:
    sources = modules()
    users = {
        name
        for name, source in sources.items()
        for _, target in imported(name, source, frozenset(sources))
        if target.split(".")[0] == library
    }
    assert users
    assert users <= HOMES[library]


@pytest.mark.parametrize(
    ("module", "planted", "said"),
    [
        ("images.views", "from featurecache.features.store import Cache", "may not import"),
        ("images.views", "from featurecache import heads", "may not import featurecache.heads"),
        ("images.views", "import featurecache.stages.cache.plan", "may not import"),
        ("images.views", "from ..features import store", "import featurecache.features.store"),
        ("features.store", "from featurecache.images.decode import decode", "may not import"),
        ("heads.mlp", "from featurecache.features.store import Cache", "may not import"),
        ("heads.mlp", "def f():\n    from featurecache.images import views", "may not import"),
        ("heads.mlp", "from featurecache.study.metrics import confusion", "may not import"),
        ("study.metrics", "from featurecache.stages.cache.ls import ls", "may not import"),
        ("cli", "from featurecache.study.metrics import confusion", "may not import"),
        ("keys", "from featurecache import executors", "may not import"),
        ("keys", "from featurecache.images.decode import decode", "may not import"),
        ("errors", "from featurecache import keys", "may not import"),
        ("stages.cache.ls", "from featurecache.commands import terminal", "may not import"),
        ("stages.cache.ls", "from featurecache.cli import main", "may not import featurecache.cli"),
        ("commands.terminal", "from featurecache.cli import main", "may not import"),
        ("runs.record", "from featurecache.stages.cache.ls import ls", "may not import"),
        ("cli", "from featurecache.stages.cache.ls import ls", "may not import"),
        ("commands.cache", "from featurecache.images.views import View", "may not import"),
        ("commands.cache", "import featurecache.adapters.head_classifier", "may not import"),
        ("commands.cache", "from featurecache.cli import main", "may not import featurecache.cli"),
        ("__init__", "from featurecache.stages.cache.ls import ls", "may not import"),
        ("images.views", "import imgaug.augmenters as iaa", "imgaug lives in"),
        ("images.views", "if True:\n    import_module('imgaug')", "imgaug lives in"),
        ("features.engines", "from timm.models import create_model", "timm lives in"),
        ("stages.cache.plan", "import openvino", "openvino lives in"),
        ("features.store", "import h5py", "h5py lives in"),
        ("features.store", "import pyarrow.parquet", "pyarrow lives in"),
        ("stages.cache.ls", "import click", "click lives in"),
        ("stages.cache.ls", "from rich.table import Table", "rich lives in"),
        ("filling.shard_plan", "from featurecache.filling import claims", "a circle"),
        ("stages.cache.utils", "", "no drawers"),
        ("stages.cache.ls", "from featurecache.stages.heads import evaluate", "may not import"),
        ("stages.heads.worth", "from featurecache.stages.cache.gc import gc", "may not import"),
        ("stages.heads.worth", "from featurecache.stages.looking import report", "may not import"),
        ("lookup.held_spaces", "from featurecache.filling import tally", "may not import"),
        ("storage.durable", "from featurecache import keys", "may not import featurecache.keys"),
    ],
)
def test_a_planted_violation_is_caught(module: str, planted: str, said: str) -> None:
    name = "featurecache" if module == "__init__" else f"featurecache.{module}"
    sources = modules()
    sources[name] = f"{sources.get(name, '')}\n{planted}\n"
    found = violations(sources)
    assert any(said in line and name in line for line in found), found


# --- what a quick command costs ----------------------------------------------------------------

HEAVY = {"torch", "timm", "torchvision", "imgaug", "openvino", "pyarrow", "cv2"}


def imports_of(*arguments: str, code: str = "") -> set[str]:
    """The modules that a real run imports."""
    run = ["-c", code] if code else ["-m", "featurecache", *arguments]
    process = subprocess.run(
        [sys.executable, "-X", "importtime", *run],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    lines = [line for line in process.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines}


def libraries_of(*arguments: str, code: str = "") -> set[str]:
    """The top-level modules that a real run imports."""
    return {name.split(".")[0] for name in imports_of(*arguments, code=code)}


@pytest.mark.parametrize(
    ("command", "most"),
    [
        # A few more modules of the package than it imports now: one import of a module that knows
        # datasets, policies or networks brings thirty and more.
        ("--help", 32),
        ("predict --help", 32),
        ("ls --cache {cache}", 62),
        ("inspect --data {data} --json", 85),
        ("policies", 95),
    ],
)
def test_quick_commands_import_little(command: str, most: int, tmp_path: Path) -> None:
    data = tmp_path / "my data"
    (data / "cat").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(data / "cat/1.png")
    Cache(tmp_path / "cache").create()
    words = [word.format(data=data, cache=tmp_path / "cache") for word in command.split()]
    names = imports_of(*words)
    assert {name.split(".")[0] for name in names} & HEAVY == set()
    own = sorted(name for name in names if name.split(".")[0] == "featurecache")
    assert 20 < len(own) <= most, own


@pytest.mark.slow
def test_commands_that_find_every_row_import_no_network(
    small_data: Path, small_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATURECACHE_MEMOS", str(tmp_path / "memos"))
    shutil.copytree(small_cache, tmp_path / "cache")
    time.sleep(QUIET_SECONDS)  # if the package was changed just now
    words = ["--data", str(small_data), "--cache", str(tmp_path / "cache"), "--view", "none"]
    words += ["--backbone", "efficientnet_lite0", "--input-size", "32", "--view", "color_1"]
    imports_of("why", *words)  # which makes the memos
    for command in ("featurize", "plan", "why"):
        names = libraries_of(command, *words)
        assert "numpy" in names
        assert names & (HEAVY | {"sklearn", "scipy", "h5py"}) == set()


def test_heads_need_no_scikit_learn_before_they_use_it() -> None:
    """It takes a second to import, and SciPy's statistics most of one."""
    modules = ("heads.sweep", "heads.training", "runs.predictions", "stages.heads.train_head")
    names = libraries_of(code="\n".join(f"import featurecache.{name}" for name in modules))
    assert "torch" in names and names & {"sklearn", "scipy"} == set()


def test_the_package_imports_nothing_heavy() -> None:
    assert libraries_of(code="import featurecache; featurecache.featurize.__doc__") & HEAVY == set()
    bare = libraries_of(code="import featurecache; dir(featurecache)")
    assert bare & (HEAVY | {"sklearn", "scipy", "tqdm", "numpy"}) == set()
    assert "torch" in libraries_of(code="import torch")  # or the tests above could not fail
