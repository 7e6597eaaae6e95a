"""Backbones as models of OpenVINO.

Converting a network takes torch, timm and several seconds, so the converted model of a backbone
that has a memo (backbone_memos.py) is stored as a memo too. The stored model must give the same
vectors as the one that it was stored from, bit for bit (law 5, "Same bytes"): they are compared on
a probe when it is stored, and whenever it is read. One that differs is not used.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydantic

from featurecache import keys
from featurecache.features.backbones import Backbone
from featurecache.features.openvino_library import core, openvino
from featurecache.features.signal_delay import delay_signals
from featurecache.json_files import Hex64, Strict, fit, parse_json
from featurecache.storage import memos
from featurecache.versions import installed_versions

_MODEL_FORMAT = 1
_MAX_HEAD = 1 << 20  # bytes of the first line of a stored model
_MAX_MODEL = 1 << 30  # bytes; larger networks are converted each time
# OpenVINO notes on a node of a converted model that its division must stay one, and not become a
# multiplication by the reciprocal, which rounds differently. Its files do not hold that note.
_DIVISION_STAYS = "nonconvertable_divide_0"


def compile_backbone(backbone: Backbone, micro_batch: int, precision: str) -> Any:
    """The compiled model of a backbone: (micro_batch, S, S, 3) uint8 to (micro_batch, D)."""
    size = backbone.preprocess.input_size
    shape = (micro_batch, size, size, 3)
    memo = _ModelMemo(backbone, shape, precision)
    compiled = memo.read()
    if compiled is None:
        model = _convert(backbone, shape)
        compiled = _compile(model, precision)
        memo.write(model, compiled)
    return compiled


def _convert(backbone: Backbone, shape: tuple[int, ...]) -> Any:
    import torch

    from featurecache.features.frozen import freeze

    with torch.no_grad(), warnings.catch_warnings():
        # torch's tracer is deprecated, and warns about shapes that become constants, as they should
        # here. OpenVINO could trace the network itself, but does so three times, as a check.
        warnings.simplefilter("ignore")
        example = torch.zeros(shape, dtype=torch.uint8)
        jit: Any = torch.jit  # has no types
        traced = jit.trace(freeze(backbone), example, check_trace=False)
        with delay_signals():  # the converter calls Python from C++
            model = openvino().convert_model(traced)
    model.reshape(list(shape))
    return model


def _compile(model: Any, precision: str) -> Any:
    hints = {
        "PERFORMANCE_HINT": "THROUGHPUT",  # independent streams, as many as suit the machine
        "INFERENCE_PRECISION_HINT": precision,  # by default OpenVINO uses bf16 where it can
    }
    return core().compile_model(model, "CPU", hints)


class _Head(Strict):
    """The first line of a stored model; its XML and its weights follow."""

    format: int
    probe: Hex64  # digest of the vectors of the probe
    divisions: list[str]  # names of the nodes with the note _DIVISION_STAYS
    xml_size: pydantic.NonNegativeInt


class _ModelMemo:
    """The stored model of a backbone, there or not. A backbone without a basis has none."""

    def __init__(self, backbone: Backbone, shape: tuple[int, ...], precision: str) -> None:
        self._shape = shape
        self._precision = precision
        self._name: str | None = None
        if backbone.network.basis is not None:
            question = {
                "format": _MODEL_FORMAT,
                "backbone": backbone.key(),
                "basis": backbone.network.basis,
                "shape": list(shape),
                "precision": precision,
                "versions": installed_versions("openvino", "torch", "timm"),
            }
            self._name = f"openvino-{keys.digest(question)[:32]}.model"

    def read(self) -> Any | None:
        """The stored model, compiled, if it gives the vectors that it should."""
        content = memos.read_memo(self._name, _MAX_MODEL) if self._name else None
        if content is None:
            return None
        end = content.find(b"\n", 0, _MAX_HEAD)
        try:
            head = fit(_Head, parse_json(content[: max(end, 0)]))
            compiled = self._compile_stored(content[end + 1 :], head)
        except (ValueError, RuntimeError):  # RuntimeError: OpenVINO refuses it
            return None
        return compiled if self._probe(compiled) == head.probe else None

    def write(self, model: Any, compiled: Any) -> None:
        """Store a model, if it gives the same vectors when it is read again."""
        if self._name is None:
            return
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder, "model.xml"), Path(folder, "model.bin")]
            openvino().serialize(model, *map(str, files))
            if sum(file.stat().st_size for file in files) > _MAX_MODEL - _MAX_HEAD:
                return
            xml, weights = (file.read_bytes() for file in files)
        head = _Head(
            format=_MODEL_FORMAT,
            probe=self._probe(compiled),
            divisions=[
                node.get_friendly_name()
                for node in model.get_ops()
                if _DIVISION_STAYS in dict(node.get_rt_info())
            ],
            xml_size=len(xml),
        )
        if self._probe(self._compile_stored(xml + weights, head)) == head.probe:
            line = json.dumps(head.model_dump(mode="json")).encode() + b"\n"
            memos.write_memo(self._name, line + xml + weights)

    def _compile_stored(self, content: bytes, head: _Head) -> Any:
        """The compiled model of the XML and the weights that `content` holds end to end."""
        model = core().read_model(content[: head.xml_size], content[head.xml_size :])
        divisions = set(head.divisions)
        for node in model.get_ops():
            if node.get_friendly_name() in divisions:
                node.get_rt_info()[_DIVISION_STAYS] = ""
        return _compile(model, self._precision)

    def _probe(self, compiled: Any) -> str:
        """A digest of the vectors of one batch of noise."""
        pixels = np.random.default_rng(0).integers(0, 256, self._shape, np.uint8)
        vectors = compiled.create_infer_request().infer({0: pixels})[0]
        return hashlib.sha256(np.asarray(vectors, np.float32).tobytes()).hexdigest()
