"""The documentation says what the product does: names, options, keys, examples, the format."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib
import inspect
import json
import re
import shlex
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pydantic
import pytest
import yaml
from blake3 import blake3
from PIL import Image

import featurecache
from featurecache import keys, yaml_files
from featurecache.cli import cli
from featurecache.features import shards
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.generators.configs import CONFIGS, read_config
from featurecache.heads import defaults
from featurecache.heads.schedules import Schedule
from featurecache.images import policies
from featurecache.images.operations import OPERATIONS
from featurecache.networks.configs import NetworkConfig
from featurecache.stages.recipes import recipe_file
from featurecache.stages.search.search_config import SearchConfig
from tests.space_folders import folder_of

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("pipelines/**/*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def first_cells(page: str) -> list[str]:
    """What stands in backquotes first in each row of the tables of a page."""
    return re.findall(r"^\| `([^`]+)`", page, re.MULTILINE)


def sections(page: str) -> dict[str, str]:
    """The text below each `## ` heading."""
    parts = re.split(r"^## (.*)$", page, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def commands() -> dict[str, click.Command]:
    """Every command by its full name, nested ones too."""

    def below(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
        for inner in getattr(command, "commands", {}).values():
            yield f"{name} {inner.name}", inner
            yield from below(inner, f"{name} {inner.name}")

    return dict(below(cli, "featurecache"))


def options_of(command: click.Command) -> set[str]:
    given = [p for p in command.params if isinstance(p, click.Option)]
    return {name for option in given for name in option.opts if name.startswith("--")}


# ---- docs/cli.md ----


def test_cli_page_has_every_command_and_no_other() -> None:
    documented = {name for name in sections(text("docs/cli.md")) if name.startswith("featurecache")}
    assert documented == set(commands())


@pytest.mark.parametrize("name", commands())
def test_cli_page_has_every_option_of_a_command_and_no_other(name: str) -> None:
    page = sections(text("docs/cli.md"))
    shared = {cell.split()[0] for cell in first_cells(page["Shared options"])}
    said = re.search(r"^Shared: ((?:.+\n)+)", page[name], re.MULTILINE)
    borrowed = set(re.findall(r"`(--[a-z-]+)`", said[1])) if said else set()
    assert borrowed <= shared
    if "--data" in borrowed:  # the page says so in the row of --data
        borrowed |= {cell for cell in shared if cell.endswith("-column")}
    own = {cell.split()[0] for cell in first_cells(page[name])}
    assert borrowed | own == options_of(commands()[name])


@pytest.mark.parametrize("name", commands())
def test_cli_page_names_every_argument_of_a_command(name: str) -> None:
    arguments = [p for p in commands()[name].params if isinstance(p, click.Argument)]
    section = sections(text("docs/cli.md"))[name]
    assert all(re.search(rf"{name} .*{str(a.name).upper()}", section) for a in arguments)


RESULTS = {
    "featurecache augment": "cache.augment.Filled",
    "featurecache baselines": "heads.baselines.Baselines",
    "featurecache ensemble": "heads.ensemble.Ensemble",
    "featurecache evaluate": "heads.evaluate.Evaluation",
    "featurecache export": "cache.export.Exported",
    "featurecache featurize": "cache.featurize.Featurized",
    "featurecache fit-generator": "generators.fit_generator.FittedGenerator",
    "featurecache generate": "generators.generate.Generated",
    "featurecache inspect": "looking.inspect.Inspection",
    "featurecache plan": "cache.plan.Plan",
    "featurecache policies preview": "looking.policies.Sheet",
    "featurecache predict": "heads.predict.Prediction",
    "featurecache study drift": "studies.study_files.Study",
    "featurecache study neighbours": "studies.study_files.Study",
    "featurecache study pca": "studies.study_files.Study",
    "featurecache study realism": "studies.study_files.Study",
    "featurecache study tsne": "studies.study_files.Study",
    "featurecache study filters": "studies.filters.Filters",
    "featurecache study saliency": "studies.saliency.Saliency",
    "featurecache search": "search.search_report.Search",
    "featurecache submit": "heads.submit.Submission",
    "featurecache report": "looking.report.Report",
    "featurecache runs": "looking.runs.RunRow",
    "featurecache run": "recipes.run.RecipeResult",
    "featurecache train-head": "heads.train_head.TrainedRun",
    "featurecache train-network": "networks.train_network.TrainedNetworkRun",
    "featurecache verify": "cache.verify.Verification",
    "featurecache why": "cache.why.Why",
    "featurecache worth": "heads.worth.Worth",
}


@pytest.mark.parametrize("name", RESULTS)
def test_json_examples_have_the_fields_that_commands_print(name: str) -> None:
    module, _, kind = RESULTS[name].rpartition(".")
    result = getattr(importlib.import_module(f"featurecache.stages.{module}"), kind)
    (block,) = blocks(sections(text("docs/cli.md"))[name], "json")
    example = json.loads(block)
    for each in example if isinstance(example, list) else [example]:
        assert list(each) == [field.name for field in dataclasses.fields(result)]


def test_cli_page_has_every_step_of_a_recipe_with_its_options() -> None:
    section = sections(text("docs/cli.md"))["featurecache run"]
    rows = re.findall(r"^\| ([a-z-]+) \| (`[a-z].*?) \|", section, re.MULTILINE)
    said = {step: set(re.findall(r"`(\w+)`", re.sub(r"\(.*?\)", "", cell))) for step, cell in rows}
    assert said == {step: set(model.model_fields) for step, model in recipe_file.COMMANDS.items()}
    (example,) = blocks(section, "yaml")
    check_steps(example)


def check_steps(recipe: str) -> None:
    file = recipe_file.RecipeFile.model_validate(
        yaml_files.plain_value(yaml.compose(recipe, yaml.SafeLoader))
    )
    for step in file.steps:
        ((command, given),) = step.items()
        recipe_file.COMMANDS[command].model_validate(given)


# ---- the other pages ----


def test_policies_page_has_every_shipped_policy() -> None:
    page = sections(text("docs/policies.md"))["Shipped"]
    assert set(first_cells(page)) == {"none", *policies.shipped()}


def test_policies_page_names_every_refused_augmenter() -> None:
    refused = sections(text("docs/policies.md"))["Refused"]
    assert policies.REFUSED - set(re.findall(r"`(\w+)`", refused)) == {"Augmenter"}  # the base


def test_policies_page_has_every_augmenter_of_ours_with_its_parameters() -> None:
    section = sections(text("docs/policies.md"))["Augmenters of our own"]
    rows = dict(re.findall(r"^\| `(\w+)` \|(.*?)\|", section, re.MULTILINE))
    assert set(rows) == set(policies.OWN_AUGMENTERS)
    for name, said in rows.items():
        parameters = inspect.signature(policies.augmenters()[name]).parameters
        assert set(parameters) <= set(re.findall(r"`(\w+)", said))


@pytest.mark.slow
@pytest.mark.parametrize("block", blocks(text("docs/policies.md"), "yaml"))
def test_policy_examples_build_and_run(
    block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    style = tmp_path / "data/train/alp"
    style.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(style / "0.png")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "example.yaml").write_text(block)
    policy = policies.read_policy(tmp_path / "example.yaml")
    pixels = np.zeros((48, 48, 3), np.uint8)
    assert policy.build().run(pixels, b"entropy").dtype == np.uint8


def keys_of(model: type[pydantic.BaseModel], at: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield f"{at}{name}"
        for inner in models_in(field.annotation):
            yield from keys_of(inner, f"{at}{name}.")


def models_in(annotation: object) -> list[type[pydantic.BaseModel]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, pydantic.BaseModel) else []
    return [model for part in typing.get_args(annotation) for model in models_in(part)]


def test_schedules_page_has_every_key_and_no_other() -> None:
    documented = first_cells(sections(text("docs/schedules.md"))["Keys"])
    assert sorted(documented) == sorted(keys_of(Schedule))


def test_search_page_has_every_key_and_operation_and_no_other() -> None:
    page = sections(text("docs/search.md"))
    own = [key for key in keys_of(SearchConfig) if key not in {*keys_of(Schedule)} - {"validation"}]
    documented = first_cells(page["Configuration"])
    assert sorted(documented) == sorted({*own, "epochs"} - {"judge"})
    rows = re.findall(r"^\| (.+?) \|", page["Operations"], re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", " ".join(rows))) == set(OPERATIONS)


def test_networks_page_has_every_key_that_schedules_have_not() -> None:
    documented = first_cells(sections(text("docs/networks.md"))["Keys"])
    of_heads = {*keys_of(Schedule)} - {"head", "precision"}  # other values
    assert documented == [key for key in keys_of(NetworkConfig) if key not in of_heads]


def test_examples_of_networks_are_configurations() -> None:
    examples = blocks(text("docs/networks.md"), "yaml")
    assert len(examples) >= 3
    for example in examples:
        NetworkConfig.model_validate(yaml_files.plain_value(yaml.compose(example, yaml.SafeLoader)))


def test_generators_page_has_every_key_and_no_other() -> None:
    documented = first_cells(sections(text("docs/generators.md"))["Keys"])
    used = {key for config in CONFIGS.values() for key in keys_of(config)}
    assert sorted(set(documented)) == sorted(used)


def test_generators_page_has_the_default_of_every_key() -> None:
    """A cell such as `64; 8 for `a` and `b``: the default, and those of some generators."""
    tables = [
        dict(re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", part, re.MULTILINE))
        for part in sections(text("docs/generators.md"))["Keys"].split("| key | default |")[1:]
    ]
    of_kind = dict(zip(("transform", "sampler", "vector sampler"), tables[1:], strict=True))
    for name, model in CONFIGS.items():
        for key, field in model.model_fields.items():
            if (name, key) == ("gaussian", "batch_size"):
                continue  # it is refused
            cell, *exceptions = (tables[0] | of_kind[model.kind])[key].split("; ")
            for exception in exceptions:
                value, _, names = exception.partition(" for ")
                cell = value if f"`{name}`" in names else cell
            documented = yaml.safe_load(cell.strip("`"))
            if field.is_required():
                assert documented == "required"
            elif field.default is None:
                assert documented == ("all" if key == "classes" else "none")
            else:
                assert documented == field.default, (name, key)


def test_examples_of_generators_are_configurations(tmp_path: Path) -> None:
    examples = [e for e in blocks(text("docs/generators.md"), "yaml") if "steps:" in e]
    assert examples
    (recipe,) = (e for e in examples if "fit-generator:" in e)
    check_steps(recipe)
    for example in set(examples) - {recipe}:
        (tmp_path / "generator.yaml").write_text(example)
        read_config(tmp_path / "generator.yaml")


def test_schedule_examples_are_schedules() -> None:
    pages = [text(f"docs/{name}.md") for name in ("schedules", "quickstart")]
    examples = [block for page in pages for block in blocks(page, "yaml") if "phases" in block]
    assert len(examples) >= 7
    for example in examples:
        Schedule.model_validate(yaml_files.plain_value(yaml.compose(example, yaml.SafeLoader)))


def test_python_page_has_every_name_of_the_package_and_no_other() -> None:
    assert sorted(first_cells(text("docs/python.md"))) == sorted(featurecache.__all__)


@pytest.mark.parametrize("name", NAMES)
def test_python_examples_use_names_that_exist(name: str) -> None:
    for block in blocks(text(name), "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "featurecache":
                assert node.attr in featurecache.__all__


@pytest.mark.slow
@pytest.mark.usefixtures("load_once")
def test_the_examples_of_the_python_page_run(
    small_data: Path,
    tiny: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From top to bottom, on 36 images that the network sees in 32x32 pixels. The vectors of all
    digits take minutes."""
    from featurecache.adapters import featurizer
    from featurecache.stages.cache import featurize

    (tmp_path / "photos").symlink_to(small_data / "train")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(defaults, "_STEPS", 1)
    small = {name: value for name, value in tiny.items() if name != "backbone"}
    compute = featurize.featurize
    for module in (featurize, featurizer):
        monkeypatch.setattr(module, "featurize", lambda *args, **kw: compute(*args, **kw | small))
    runs: dict[str, dict[str, Any]] = {}
    for section, content in sections(text("docs/python.md")).items():
        if section != "Vectors and heads":
            for example in blocks(content, "python"):
                runs[section] = {}
                exec(example, runs[section])
    assert runs["Filling a cache"]["made"].computed == 108
    views = runs["Several views in a cross-validation"]
    assert len(views["X"]) == len(views["y"]) == len(views["ids"]) == 72
    assert (views["groups"][:36] == views["groups"][36:]).all() and len(set(views["groups"])) == 36
    assert abs(views["by_image"] - 0.5) < 0.15 and views["by_image"] < views["by_row"]
    assert runs["Vectors in torch"]["dataset"].draws["mirror"] == ["mirror_1", "mirror_2"]
    assert "the cache lacks 1,797 images of view spatial_7" in capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_shell_examples_use_commands_and_options_that_exist(name: str) -> None:
    lines = [line for block in blocks(text(name), "sh") for line in block.splitlines()]
    for line in lines:
        words = shlex.split(line.split("&& ")[-1], comments=True)
        if not words or Path(words[0]).name != "featurecache":
            continue
        command: click.Command = cli
        while isinstance(command, click.Group) and len(words) > 1 and words[1][0] != "-":
            words = words[1:]
            assert words[0] in command.commands, line
            command = command.commands[words[0]]
        assert {word for word in words if word.startswith("--")} <= options_of(command), line


@pytest.mark.parametrize("name", NAMES)
def test_relative_links_lead_to_files_and_headings(name: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text(name)):
        if "://" in target:
            continue
        path, _, heading = target.partition("#")
        there = ROOT / name if not path else (ROOT / name).parent / path
        assert there.exists(), target
        if heading:
            found = re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE)
            assert heading in [re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in found]


def test_readme_has_the_test_command_alone_in_one_block() -> None:
    section = sections(text("README.md"))["Test"]
    (line,) = blocks(section, "sh")
    assert line.count("\n") == 1 and line.endswith(" && .venv/bin/uv run --extra test pytest\n")


# ---- docs/format.md: a reader that was written from that page alone ----


def canonical_hash(value: object) -> str:
    printed = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(printed.encode()).hexdigest()


def read_space(folder: Path) -> tuple[dict[str, bytes | None], str]:
    """item (hex) -> its vector's or picture's bytes, None if undecodable; and the root hash."""
    marker = json.loads((folder / "../../CACHE.json").read_bytes())
    assert marker == {"format": "featurecache cache", "version": 1}
    described = json.loads((folder / "space.json").read_bytes())
    assert described.pop("checksum") == canonical_hash(described)
    assert canonical_hash(described["key"]) == folder.name
    found: dict[str, bytes | None] = {}
    total = 0
    for path in sorted(folder.glob("[0-9a-f]*.json")):
        assert path.read_bytes().endswith(b"\n")
        record = json.loads(path.read_bytes())
        checksum = record.pop("checksum")
        shard = hashlib.sha256(bytes.fromhex(record["items"])).hexdigest()
        assert checksum == canonical_hash(record)
        assert record["format"] == (2 if "row_digests" in record else 1)
        assert record["space"] == folder.name
        assert record["shard"] == shard == path.stem
        data = (folder / record["file"]).read_bytes()
        assert record["file"] == f"{shard}-{record['sha256'][:16]}.h5"
        assert len(data) == record["size"]
        assert hashlib.sha256(data).hexdigest() == record["sha256"]
        arrays = {}
        for name, array in record["arrays"].items():
            count = int(np.prod(array["shape"]))
            flat = np.frombuffer(data, array["dtype"], count, array["offset"])
            arrays[name] = flat.reshape(array["shape"])
        if "row_digests" in record:
            size = record["row_digests"]["group"]
            rows = [arrays["features"][n : n + size] for n in range(0, len(arrays["items"]), size)]
            digests = b"".join(blake3(group.tobytes()).digest(16) for group in rows)
            assert digests == arrays["digests"].tobytes()
            for name in ("features", "digests"):
                digest = blake3(arrays[name].tobytes()).hexdigest()
                assert digest == record["row_digests"][name]
        row_sum = 0
        for row, item in enumerate(arrays["items"]):
            assert record["items"][64 * row : 64 * row + 64] == item.tobytes().hex()
            if "features" in arrays:
                content = arrays["features"][row].tobytes()
            else:
                start, stop = arrays["offsets"][row : row + 2]
                content = arrays["pictures"][int(start) : int(stop)].tobytes()
            status = int(arrays["status"][row])
            assert (status == 1) == (item.tobytes().hex() in record["failed"])
            row_hash = hashlib.sha256(item.tobytes() + bytes([status]) + content).digest()
            row_sum += int.from_bytes(row_hash, "big")
            # Without a shared item, which is looked at in another test, every row counts.
            assert item.tobytes().hex() not in found
            found[item.tobytes().hex()] = None if status else content
        assert f"{row_sum % 2**256:064x}" == record["row_sum"]
        total += row_sum
    return found, canonical_hash({"rows": len(found), "sum": f"{total % 2**256:064x}"})


def items_named(*names: str) -> list[bytes]:
    return [hashlib.sha256(name.encode()).digest() for name in names]


@pytest.fixture
def vectors(tmp_path: Path) -> tuple[Space, dict[bytes, np.ndarray]]:
    """A space of five vectors in two shards; the image of `c` could not be decoded."""
    cache = Cache(tmp_path / "cache")
    cache.create()
    view = {"policy": {"library": "é 1", "tree": [{"Fliplr": {"p": 1e-05}}]}, "draw": 2, "seed": 0}
    key = keys.vector_key(view, {"name": "net", "crop": 0.875, "mean": [1.0]}, "f32")
    space = cache.space(key, "flips_2", "net")
    made = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    made[2] = 0
    items = items_named(*"abcde")
    space.commit(items[:3], {"features": made[:3]}, {items[2]: "truncated ☹"}, {"engine": "x"}, 1.0)
    space.commit(items[3:], {"features": made[3:]}, {}, {"engine": "x"}, 1e-9)
    fresh = cache.space(key, "flips_2", "net")
    return fresh, dict(zip(items, made, strict=True))


def test_a_reader_written_from_the_format_page_reads_vectors(
    vectors: tuple[Space, dict[bytes, np.ndarray]],
) -> None:
    space, made = vectors
    found, root_hash = read_space(folder_of(space))
    bad = items_named("c")[0].hex()
    assert found.pop(bad) is None
    assert found == {i.hex(): row.tobytes() for i, row in made.items() if i.hex() != bad}
    assert root_hash == space.root_hash


def test_a_reader_written_from_the_format_page_reads_pictures(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    cache.create()
    key = keys.picture_key(None)
    items = items_named(*"xyz")
    content = [b"first picture", b"", b"third"]
    arrays = {
        "pictures": np.frombuffer(b"".join(content), np.uint8),
        "offsets": np.cumsum([0, *map(len, content)], dtype=np.uint64),
    }
    cache.space(key).commit(items, arrays, {items[1]: "no image"}, {"pictures": "png"}, 0.5)
    space = cache.space(key)
    found, root_hash = read_space(folder_of(space))
    assert list(found.values()) == [b"first picture", None, b"third"]
    assert root_hash == space.root_hash


def test_of_an_item_in_two_shards_the_first_by_name_counts(
    vectors: tuple[Space, dict[bytes, np.ndarray]],
) -> None:
    space, made = vectors
    again = items_named("a", "f")
    other = np.full((2, 7), 3, np.float32)
    space.commit(again, {"features": other}, {}, {"engine": "y"}, 1.0)
    space = Cache(folder_of(space).parent.parent).space(space.key)
    first = shards.shard_name(again) < shards.shard_name(items_named(*"abc"))
    (row,), _ = space.vectors([again[0]])
    assert row.tobytes() == (other[0] if first else made[again[0]]).tobytes()
    rows = made | {again[1]: other[1]} | ({again[0]: other[0]} if first else {})
    bad = items_named("c")[0]
    total = sum(
        int.from_bytes(hashlib.sha256(i + bytes([i == bad]) + v.tobytes()).digest(), "big")
        for i, v in rows.items()
    )
    assert space.root_hash == canonical_hash({"rows": 6, "sum": f"{total % 2**256:064x}"})


def test_a_row_that_could_be_decoded_counts_before_one_that_could_not(
    vectors: tuple[Space, dict[bytes, np.ndarray]],
) -> None:
    space, made = vectors
    good = np.full((1, 7), 3, np.float32)
    again = items_named("c")
    space.commit(again, {"features": good}, {}, {"engine": "y"}, 1.0)
    # A shard of the same item that failed once more changes nothing.
    worse = items_named("c", "a")
    space.commit(worse, {"features": np.zeros((2, 7), np.float32)}, {again[0]: "no"}, {}, 1.0)
    space = Cache(folder_of(space).parent.parent).space(space.key)
    (row,), (fine,) = space.vectors(again)
    assert row.tobytes() == good.tobytes() and fine
    assert space.failures(made) == {}


@pytest.mark.parametrize("where", ["record", "data", "key"])
def test_the_reader_of_the_format_page_sees_a_changed_byte(
    vectors: tuple[Space, dict[bytes, np.ndarray]], where: str
) -> None:
    space, _ = vectors
    record = folder_of(space) / f"{space.records[0].shard}.json"
    files = {"record": record, "data": folder_of(space) / space.records[0].file}
    path = files.get(where, folder_of(space) / "space.json")
    data = bytearray(path.read_bytes())
    before = {"record": b'"items": "', "key": b'"ne', "data": b"HDF"}[where]
    place = data.index(before) + len(before)
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(AssertionError):
        read_space(folder_of(space))


def test_format_page_has_every_field_of_a_record(
    vectors: tuple[Space, dict[bytes, np.ndarray]],
) -> None:
    space, _ = vectors
    page = sections(text("docs/format.md"))
    record = json.loads((folder_of(space) / f"{space.records[0].shard}.json").read_bytes())
    assert first_cells(page["The record"]) == list(record)
    assert first_cells(page["Decoding"]) == [
        "orientation",
        "colour",
        "alpha",
        "sixteen_bit",
        "frame",
        "jpeg_side",
    ]
    assert dict(re.findall(r"^\| `(\w+)` \| `([^`]+)`", page["Decoding"], re.MULTILINE)) == (
        keys.DECODE_RULE
    )
