"""Commands run in this process, through the real command line, with networks loaded once."""

from __future__ import annotations

import contextlib
import functools
import io
import sys
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

from benchmarks.reliability.harness import Writer
from benchmarks.reliability.jobs import NOTICED
from featurecache.features import backbones, engines
from featurecache.features.backbones import Backbone
from featurecache.filling import request as resolve_stage
from featurecache.filling import vectors as featurize_stage
from featurecache.filling.request import Request, resolve_request

NETWORK = "efficientnet_lite0"
Options = dict[str, Any]  # arguments of `featurize`

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
def networks_loaded_once() -> Iterator[None]:
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


def run_command(writer: Writer, verb: str, options: Mapping[str, Any]) -> tuple[int, str]:
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


def resolved(asked: Options) -> Request:
    names = ("data", "cache", "policy", "backbone", "weights", "input_size", "crop",
             "interpolation", "precision", "seed")  # fmt: skip
    return resolve_request(**{name: asked[name] for name in names if name in asked})
