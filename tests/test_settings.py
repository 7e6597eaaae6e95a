"""The defaults of the commands: environment variables, and a featurecache.toml."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from featurecache import settings
from featurecache.cli import cli
from featurecache.errors import BadInput, FeatureCacheError, FeatureCacheWarning
from featurecache.settings import command_line, read_settings, unknown_variables


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder below a home folder, without settings."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home/project/deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "home/project")
    return tmp_path / "home/project"


def write(folder: Path, **keys: Any) -> None:
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in keys.items()]
    (folder / "featurecache.toml").write_text("".join(lines))


def values() -> dict[str, tuple[str, ...]]:
    return {key: setting.values for key, setting in read_settings().items()}


def invoke(*words: object) -> Any:
    result = CliRunner().invoke(cli, [str(word) for word in words])
    if isinstance(result.exception, FeatureCacheError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_nearest_file_is_read_up_to_the_home_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_settings() == {}
    write(folder.parent.parent, data="above home")
    assert read_settings() == {}
    write(folder.parent, data="of home", backbone="a")
    assert values() == {"data": (str(folder.parent / "of home"),), "backbone": ("a",)}
    write(folder, data="photos")
    assert values() == {"data": ("photos",)}
    monkeypatch.chdir(folder / "deep")
    assert values() == {"data": (str(folder / "photos"),)}
    monkeypatch.chdir(folder.parent.parent)  # not below the home folder
    assert values() == {"data": ("above home",)}


def test_names_that_are_not_paths_stay(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, data="digits", cache="s3://bucket/cache", runs="~/runs", backbone=["a", "b"])
    monkeypatch.chdir(folder / "deep")
    assert values() == {
        "data": ("digits",),
        "cache": ("s3://bucket/cache",),
        "runs": (str(folder.parent / "runs"),),
        "backbone": ("a", "b"),
    }
    write(folder, data="./digits")
    monkeypatch.chdir(folder)
    assert values() == {"data": ("./digits",)}  # the folder of that name


def test_a_backbone_may_be_the_folder_of_a_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, backbone=["trained/net", "hf-hub:timm/net", "net"])
    (folder / "trained/net").mkdir(parents=True)
    (folder / "net").mkdir()
    monkeypatch.chdir(folder / "deep")
    assert values() == {"backbone": (str(folder / "trained/net"), "hf-hub:timm/net", "net")}


def test_what_a_recipe_says_precedes(folder: Path) -> None:
    write(folder, data="of the settings")
    steps = "steps: [{baselines: {backbone: efficientnet_lite0}}]\n"
    Path("own.yaml").write_text(f"data: of the recipe\n{steps}")
    Path("open.yaml").write_text(steps)
    with pytest.raises(BadInput, match="of the recipe: no such file"):
        invoke("run", "own.yaml")
    with pytest.raises(BadInput, match="of the settings: no such file"):
        invoke("run", "open.yaml")
    with pytest.raises(BadInput, match="option: no such file"):
        invoke("run", "own.yaml", "--data", "option")


def test_a_variable_precedes_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, cache="vectors", data="photos")
    monkeypatch.setenv("FEATURECACHE_CACHE", "other")
    monkeypatch.setenv("FEATURECACHE_BACKBONE", "a b")
    monkeypatch.setenv("FEATURECACHE_DATA", "")
    assert values() == {"data": ("photos",), "cache": ("other",), "backbone": ("a", "b")}
    sources = {key: setting.source for key, setting in read_settings().items()}
    assert sources["cache"] == "$FEATURECACHE_CACHE" and sources["data"] == "featurecache.toml"


def test_variables_that_nothing_reads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATURECACHE_MEMOS", "off")
    monkeypatch.setenv("FEATURECACHE_BENCH_DATA", "x")
    assert unknown_variables() == []
    monkeypatch.setenv("FEATURECACHE_CACH", "x")
    line = "FEATURECACHE_CACH is not used; the nearest that is: FEATURECACHE_CACHE"
    with pytest.warns(FeatureCacheWarning, match=line):
        invoke("policies")
    package = Path(settings.__file__).parent
    text = "".join(path.read_text() for path in package.rglob("*.py"))
    read = set(re.findall(r"FEATURECACHE_([A-Z][A-Z_]*)", text))
    assert read <= set(settings.VARIABLES)


def test_a_command_to_paste_has_the_options_that_it_needs(folder: Path) -> None:
    assert command_line("ls", data="data", cache="data/cache", view=None) == "featurecache ls"
    assert command_line("ls", data="my photos") == "featurecache ls --data 'my photos'"
    write(folder, data="photos")  # so that --data data has to be said
    assert command_line("ls", data="data", path_column="a") == (
        "featurecache ls --data data --path-column a"
    )
    (folder / "featurecache.toml").write_text("cach = 1")
    assert command_line("ls", cache="data/cache") == "featurecache ls --cache data/cache"


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("cach = 'x'", r"featurecache.toml: cach: no such key; nearest: cache"),
        ("[tool]\ncache = 'x'", "featurecache.toml: tool: no such key"),
        ("cache = 3", "featurecache.toml: cache: expected a path in quotes, not 3"),
        ("cache = ['x']", "featurecache.toml: cache: expected a path in quotes"),
        ("data = ''", "featurecache.toml: data: expected a path in quotes, not ''"),
        ("backbone = [1]", "featurecache.toml: backbone: expected a name or a list of names"),
        ("backbone = []", "featurecache.toml: backbone: expected a name or a list of names"),
        ("cache =", r"featurecache.toml: not valid TOML: Invalid value"),
    ],
)
def test_a_wrong_file_is_refused(folder: Path, content: str, error: str) -> None:
    (folder / "featurecache.toml").write_text(content)
    with pytest.raises(BadInput, match=error):
        invoke("ls")
    with pytest.raises(BadInput, match="no cache at elsewhere"):
        invoke("ls", "--cache", "elsewhere")  # which does not need the file


def test_a_folder_of_that_name_is_refused(folder: Path) -> None:
    (folder / "featurecache.toml").mkdir()
    with pytest.raises(BadInput, match=r"featurecache.toml: can't be read"):
        read_settings()


def test_help_and_doctor_name_the_source(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from featurecache.stages.looking import doctor

    assert "[default: data/cache]" in " ".join(invoke("ls", "--help").split())
    write(folder, cache="vectors", backbone=["a", "b"])
    monkeypatch.setenv("FEATURECACHE_DATA", "photos")
    text = " ".join(invoke("featurize", "--help").split())
    assert "[default: vectors, from featurecache.toml]" in text
    assert "[default: photos, from $FEATURECACHE_DATA]" in text
    assert "[default: a, b, from featurecache.toml]" in text
    assert "from featurecache.toml" not in invoke("study", "tsne", "--help").partition("--data")[0]
    shown = doctor._settings()
    assert "cache = vectors (featurecache.toml)" in shown
    assert "backbone = a b (featurecache.toml)" in shown
    assert "data = photos ($FEATURECACHE_DATA)" in shown


@pytest.mark.slow
def test_commands_without_options(
    folder: Path,
    small_data: Path,
    small_cache: Path,
    small_runs: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(small_runs["split"], folder / "trained/split")
    write(
        folder,
        data=str(small_data),
        cache=str(small_cache),
        runs="trained",
        backbone="efficientnet_lite0",
    )
    assert len(json.loads(invoke("ls", "--json"))) == 2
    assert [row["run"] for row in json.loads(invoke("runs", "--json"))] == ["trained/split"]
    assert json.loads(invoke("evaluate", "spl", "--json"))["run"] == "trained/split"
    rows = json.loads(invoke("export", "--out", "x.npz", "--json"))["rows"]
    assert rows == 48
    own = folder / "own.yaml"
    own.write_text("backbone: efficientnet_lite1\nhead: {}\nphases: [{views: none, epochs: 1}]\n")
    with pytest.raises(BadInput, match="efficientnet_lite1"):  # what a file says is no default
        invoke("train-head", "--schedule", own)
    run = json.loads(invoke("train-head", "--schedule", "quickstart_clean.yaml", "--json"))["run"]
    assert run.startswith("trained/")
    monkeypatch.setenv("FEATURECACHE_CACHE", "elsewhere")
    with pytest.raises(BadInput, match="no cache at elsewhere"):
        invoke("ls")
    assert json.loads(invoke("evaluate", "spl", "--json"))["n"] == 12  # from the run's own cache
