"""The options that several commands share: one name, one meaning, one help text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from featurecache.commands.setting_options import SettingOption, find_in_runs

Command = TypeVar("Command", bound=Callable[..., Any])


def options(*names: str) -> Callable[[Command], Command]:
    """Decorate a command with these SHARED options, in this order."""

    def decorate(command: Command) -> Command:
        for name in reversed(names):
            command = SHARED[name](command)
        return command

    return decorate


def _keep_column(context: click.Context, option: click.Parameter, value: str | None) -> None:
    if value is not None:
        context.meta.setdefault(_COLUMNS, {})[option.name] = value


def open_data(context: click.Context, _: click.Parameter, data: tuple[str, ...]) -> Any:
    """A single --data as it is; several, or one with columns, opened, so that no command needs to
    know of them."""
    columns = context.meta.get(_COLUMNS, {})
    if (not columns and len(data) < 2) or context.resilient_parsing:
        return data[0] if data else None
    if not data:
        raise click.UsageError("the options for columns of a CSV file need --data")
    import featurecache

    return featurecache.open_dataset(list(data), **columns)


def _data(command: Command, default: str | None = "data", note: str = "") -> Command:
    """--data, and the options for columns of a CSV file. They are hidden, since every command
    with --data has them."""
    for column in ("path", "label", "split", "group"):
        command = click.option(
            f"--{column}-column", metavar="NAME", hidden=True, is_eager=True, expose_value=False,
            callback=_keep_column, help=f"The column of a CSV file that holds the {column}."
        )(command)  # fmt: skip
    from_settings: dict[str, Any] = {} if default is None else _from("data")
    return click.option(
        "--data", multiple=True, default=(default,) if default else (),
        metavar="DIR|FILE|digits", callback=open_data, **from_settings,
        help="The dataset: a folder, a .csv, .parquet or .tar file, or hf://OWNER/NAME. Columns: "
        "--path-column, --label-column, --split-column, --group-column. Repeatable: several are "
        f"joined.{note}",
    )(command)  # fmt: skip


def _from(setting: str) -> dict[str, Any]:
    """The keywords of an option whose default is a setting."""
    return {"cls": SettingOption, "setting": setting}


def backbone_option(help: str, **keywords: Any) -> Callable[[Command], Command]:
    """--backbone, by default that of the settings."""
    return click.option("--backbone", metavar="NAME", help=help, **_from("backbone"), **keywords)


def run_argument(name: str, **keywords: Any) -> Callable[[Command], Command]:
    """An argument for one or more runs: folders, names of runs, or the start of a name."""
    return click.argument(name, callback=find_in_runs, **keywords)


_COLUMNS = "featurecache.columns"  # the key in click's context

# These options select among the cached vectors; an option that is absent matches all of them.
_CACHED_HELP = (
    "Selects vectors that were computed with it.  "
    "[default: any that the cache holds for all images; if several, the model's own]"
)


def _view_option(default: str = "") -> Callable[[Command], Command]:
    """--view; `default` says which views are taken without it."""
    return click.option(
        "--view", "--policy", "policy", multiple=True, metavar="NAME_N",
        help=f"A view: `none`, draw N of a policy, or FILE.yaml_N. Repeatable.{default}",
    )  # fmt: skip


SHARED: dict[str, Callable[[Any], Any]] = {
    "data": _data,
    "cache": click.option(
        "--cache", default="data/cache", metavar="DIR", help="The cache.", **_from("cache"),
    ),
    "run_data": lambda command: _data(command, None, "  [default: the data of the run]"),
    "run_cache": click.option(
        "--cache", metavar="DIR", help="The cache.  [default: the cache of the run]"
    ),
    "workers": click.option(
        "--workers", type=int,
        help="Processes that make pictures; 0 = the main process only.  [default: cores - 1, at "
        "most 16]",
    ),
    "seed": click.option("--seed", default=0, help="Seed of the views."),
    "policy": _view_option(),
    "policy_or_stored": _view_option("  [default: `none`, and those that `augment` stored]"),
    "policy_or_schedule": _view_option("  [default: those of the schedule]"),
    "policy_or_cached": _view_option("  [default: all in the cache]"),
    "backbone": backbone_option(
        "A network: an alias of `featurecache backbones`, any timm name, "
        "hf-hub:OWNER/NAME, or MODULE:FACTORY of your own. Repeatable.",
        multiple=True,
    ),
    "schedule_backbone": backbone_option(
        "Overrides the schedule's backbone. Repeatable: vectors are concatenated.  [default: the "
        "schedule's, or the only one in the cache]",
        multiple=True,
    ),
    "weights": click.option(
        "--weights", metavar="FILE",
        help="Weights of one backbone: .safetensors, .pth, .keras, .h5, .onnx; or `random`, for "
        "tests.",
    ),
    "input_size": click.option(
        "--input-size", type=int, help="Width and height in pixels.  [default: the model's own]"
    ),
    "crop": click.option(
        "--crop", type=float,
        help="Share of the image to keep, centred; 1 = all.  [default: the model's own]",
    ),
    "interpolation": click.option(
        "--interpolation", metavar="NAME",
        help="nearest, bilinear, bicubic or lanczos.  [default: the model's own]",
    ),
    "layer": click.option(
        "--layer", metavar="NAME",
        help="Layer to read (see `featurecache backbones --layers NAME`).  [default: pre_logits]",
    ),
    "pooling": click.option(
        "--pooling", metavar="NAME",
        help="avg, max, avg+max or token; pre_logits: model; none: keep the maps.  "
        "[default: avg, or model]",
    ),
    "store": click.option(
        "--store", metavar="FORMAT",
        help="Numbers of maps (--pooling none): f32 or f16.  [default: f32]",
    ),
    "jpeg_side": click.option(
        "--jpeg-side", type=int, metavar="N",
        help="Decode JPEGs at 1/8, 1/4 or 1/2 of their size if both sides keep N pixels.  "
        "[default: in full]",
    ),
    "engine": click.option(
        "--engine", default="auto",
        help="auto, openvino, torch-cpu, torch-cuda or torch-cuda-compiled.",
    ),
    "precision": click.option("--precision", default="f32", help="f32, bf16 or fp16."),
    "shard_rows": click.option(
        "--shard-rows", type=int,
        help="Rows per shard. A killed run loses at most one shard.  [default: 512 vectors, or "
        "256 pictures]",
    ),
    "part": click.option(
        "--part", metavar="I/N",
        help="Compute part I of the missing rows, of N jobs that fill one cache."
    ),
    "executor": click.option(
        "--executor", default="local",
        help="local, processes (on this machine) or ray (a cluster); see docs/cluster.md.",
    ),
    "address": click.option(
        "--address", metavar="HOST:PORT",
        help="Address of the Ray cluster.  [default: the one running here, or a new one]",
    ),
    "gpus_per_worker": click.option(
        "--gpus-per-worker", type=float, metavar="N",
        help="GPUs per worker.  [default: 1 if the cluster has any]",
    ),
    "max_workers": click.option(
        "--max-workers", type=int, metavar="N",
        help="Maximum number of workers.  [default: as many as fit]",
    ),
    "allow_failed": click.option(
        "--allow-failed", is_flag=True, help="Exit 0 even if images could not be decoded."
    ),
    "kept_runs": click.option(
        "--runs", default="runs", metavar="DIR", help="Folder of runs, whose spaces are kept.",
        **_from("runs"),
    ),
    "runs": click.option(
        "--runs", default="runs", metavar="DIR", help="Folder for new runs.", **_from("runs"),
    ),
    "device": click.option("--device", default="auto", help="auto, cpu or cuda."),
    "only_split": click.option(
        "--split", metavar="NAME", help="Only the images of this split.  [default: all]"
    ),
    "limit": click.option(
        "--limit", type=int, metavar="N",
        help="Only N of the images, the same ones each time; a larger N includes them.",
    ),
    "split": click.option("--split", default="val", help="A labelled split."),
    "run_split": click.option(
        "--split", metavar="NAME",
        help="A labelled split, or `held-out`: the images that the run was validated on.  "
        "[default: val, or held-out without it]",
    ),
    "view": click.option(
        "--view", default="none", metavar="NAME_N", help="The view of the images.",
    ),
    "run_seed": click.option(
        "--seed", type=int, help="Seed of the views.  [default: augment_seed of the run's schedule]"
    ),
    "run_weights": click.option(
        "--weights", multiple=True, metavar="FILE",
        help="Weights that the run's vectors were computed with: .safetensors or .pth. Repeatable.",
    ),
    "config_seed": click.option(
        "--seed", type=int, help="Overrides the seed in the configuration."
    ),
    "tta": click.option(
        "--tta", multiple=True, metavar="NAME_N",
        help="Another view to average the probabilities over. Repeatable.",
    ),
    "cached_precision": click.option("--precision", metavar="NAME", help=_CACHED_HELP),
    "cached_input_size": click.option("--input-size", type=int, help=_CACHED_HELP),
    "cached_crop": click.option("--crop", type=float, help=_CACHED_HELP),
    "cached_interpolation": click.option("--interpolation", metavar="NAME", help=_CACHED_HELP),
    "cached_layer": click.option("--layer", metavar="NAME", help=_CACHED_HELP),
    "cached_pooling": click.option("--pooling", metavar="NAME", help=_CACHED_HELP),
    "cached_jpeg_side": click.option("--jpeg-side", type=int, metavar="N", help=_CACHED_HELP),
    "json": click.option(
        "--json", "as_json", is_flag=True, help="One JSON object on stdout, the rest on stderr."
    ),
    "quiet": click.option("--quiet", is_flag=True, help="Show no progress."),
    "debug": click.option(
        "--debug", is_flag=True, expose_value=False, help="Show the traceback of an error."
    ),
}  # fmt: skip
_SETTING = ("input_size", "crop", "interpolation", "layer", "pooling")
COMPUTING = ("weights", *_SETTING, "store", "precision", "jpeg_side")  # how vectors are computed
CLUSTER = ("executor", "address", "gpus_per_worker", "max_workers")  # many machines
IMAGES = ("data", "only_split", "limit", "cache")
FILLING = ("workers", "seed", "shard_rows", "part", *CLUSTER, "allow_failed")  # how to fill a cache
OUTPUT = ("json", "quiet", "debug")
CACHED = tuple(f"cached_{name}" for name in (*_SETTING, "precision", "jpeg_side"))
