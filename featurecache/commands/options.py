"""The options that several commands share: one name, one meaning, one help text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def options(*names: str) -> Callable[[Command], Command]:
    """Decorate a command with some of the SHARED options, in this order."""

    def decorate(command: Command) -> Command:
        for name in reversed(names):
            command = SHARED[name](command)
        return command

    return decorate


# Vectors that are held are chosen among: what is not given may be anything.
_HELD = "As the vectors were made.  [default: as those held]"

SHARED: dict[str, Callable[[Any], Any]] = {
    "data": click.option(
        "--data", default="data", show_default=True, metavar="DIR|FILE|digits",
        help="The dataset: a folder, or a .csv, .parquet or .tar file."
    ),
    "cache": click.option(
        "--cache", default="data/cache", show_default=True, metavar="DIR", help="The cache."
    ),
    "workers": click.option(
        "--workers", type=int, default=None,
        help="Processes that make pictures; 0 = in this one.  [default: cores - 1]",
    ),
    "seed": click.option(
        "--seed", type=int, default=0, show_default=True, help="Seed of the views."
    ),
    "policy": click.option(
        "--view", "--policy", "policy", multiple=True, metavar="NAME_N",
        help="A view: `none`, draw N of a policy, or FILE.yaml_N. Repeatable.",
    ),
    "backbone": click.option(
        "--backbone", multiple=True, metavar="NAME",
        help="A network: an alias of `featurecache backbones`, or any timm name. Repeatable.",
    ),
    "weights": click.option(
        "--weights", metavar="FILE",
        help="Weights of the one backbone: .safetensors, .pth or .ckpt. (`random`: for tests.)",
    ),
    "input_size": click.option(
        "--input-size", type=int, help="Pixels, both sides.  [default: the model's own]"
    ),
    "crop": click.option(
        "--crop", type=float,
        help="Share of the image kept at the centre; 1 = all.  [default: the model's own]",
    ),
    "interpolation": click.option(
        "--interpolation", metavar="NAME",
        help="nearest, bilinear, bicubic or lanczos.  [default: the model's own]",
    ),
    "layer": click.option(
        "--layer", metavar="NAME",
        help="What is read; `featurecache backbones --layers NAME` lists.  [default: pre_logits]",
    ),
    "pooling": click.option(
        "--pooling", metavar="NAME",
        help="avg, max, avg+max or token; pre_logits: model.  [default: avg, or model]",
    ),
    "engine": click.option(
        "--engine", default="auto", show_default=True,
        help="auto, openvino, torch-cpu, torch-cuda or torch-cuda-compiled.",
    ),
    "precision": click.option(
        "--precision", default="f32", show_default=True, help="f32, bf16 or fp16."
    ),
    "shard_rows": click.option("--shard-rows", type=int, help="Rows a shard; a kill loses one."),
    "part": click.option(
        "--part", metavar="I/N", help="One job's share of what is missing, of N at one cache."
    ),
    "executor": click.option(
        "--executor", default="local", show_default=True,
        help="local, processes (of this machine) or ray (a cluster); docs/cluster.md.",
    ),
    "address": click.option(
        "--address", metavar="HOST:PORT",
        help="Of the Ray cluster.  [default: the one that runs here, or a new one]",
    ),
    "gpus_per_worker": click.option(
        "--gpus-per-worker", type=float, metavar="N",
        help="GPUs of each worker.  [default: 1 where there are some]",
    ),
    "max_workers": click.option(
        "--max-workers", type=int, metavar="N",
        help="Workers at a time.  [default: as many as there is room for]",
    ),
    "allow_failed": click.option(
        "--allow-failed", is_flag=True, help="Exit 0 although images could not be decoded."
    ),
    "runs": click.option(
        "--runs", default="runs", show_default=True, metavar="DIR",
        help="Where run folders go that are not named.",
    ),
    "device": click.option(
        "--device", default="auto", show_default=True, help="auto, cpu or cuda."
    ),
    "split": click.option("--split", default="val", show_default=True, help="A labelled split."),
    "run_split": click.option(
        "--split", default="val", show_default=True,
        help="A labelled split, or `held-out`: what the run was validated on.",
    ),
    "view": click.option(
        "--view", default="none", show_default=True, metavar="NAME_N",
        help="The view to look through.",
    ),
    "tta": click.option(
        "--tta", multiple=True, metavar="NAME_N",
        help="A view to average the probabilities over too. Repeatable.",
    ),
    "held_precision": click.option("--precision", metavar="NAME", help=_HELD),
    "held_input_size": click.option("--input-size", type=int, help=_HELD),
    "held_crop": click.option("--crop", type=float, help=_HELD),
    "held_interpolation": click.option("--interpolation", metavar="NAME", help=_HELD),
    "held_layer": click.option("--layer", metavar="NAME", help=_HELD),
    "held_pooling": click.option("--pooling", metavar="NAME", help=_HELD),
    "json": click.option(
        "--json", "as_json", is_flag=True, help="One JSON object on stdout, the rest on stderr."
    ),
    "quiet": click.option("--quiet", is_flag=True, help="No progress."),
    "debug": click.option(
        "--debug", is_flag=True, expose_value=False, help="Show the traceback of an error."
    ),
}  # fmt: skip
_SETTING = ("input_size", "crop", "interpolation", "layer", "pooling")
COMPUTING = ("weights", *_SETTING, "precision")  # how vectors are made
SPREAD = ("part", "executor", "address", "gpus_per_worker", "max_workers")  # of many machines
HELD = (
    *(f"held_{name}" for name in _SETTING),
    "held_precision",
)  # which of the vectors that are held
