"""ONNX files, read by OpenVINO: the arrays of their layers, in the order of the graph.

A file is read once, whole. One that keeps its arrays in other files is refused, because OpenVINO
would open whatever file it names.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from featurecache.errors import BadInput
from featurecache.features.keras_files import MAX_FILE, FileLayer, WeightsFile
from featurecache.features.openvino_library import core, openvino
from featurecache.storage.safe_open import read_regular
from featurecache.text import one_line

# Field 1 of an entry of `external_data`, by which a tensor says in which file it is.
_ELSEWHERE = b"\x0a\x08location"
_PASSING = ("Reshape", "Unsqueeze", "Squeeze", "Convert")  # of a constant: the same numbers


class OnnxGraph:
    """The graph in an ONNX file. Raises BadInput, also where OpenVINO is not available."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            data = read_regular(path, MAX_FILE)
        except OSError as error:
            raise BadInput(f"--weights {path}: {error.strerror}") from error
        if _ELSEWHERE in data:
            raise BadInput(
                f"--weights {path}: keeps its arrays in other files; save the model as one file"
            )
        try:
            self._model = core().read_model(data, b"")
        except ImportError as error:
            raise BadInput(
                f"--weights {path}: ONNX files are read by OpenVINO ({error})"
            ) from error
        except (RuntimeError, TypeError, ValueError) as error:
            raise self._unreadable(error) from error

    def layers(self) -> WeightsFile:
        """Its layers, as those of a file of Keras; `trainable` is not in an ONNX file."""
        try:
            layers = [layer for n in self._model.get_ordered_ops() for layer in _layers(n)]
        except (RuntimeError, ValueError) as error:
            raise self._unreadable(error) from error
        return WeightsFile(models=(tuple(layers),), trainable=())

    def last_map(self, picture: np.ndarray, channels: int) -> np.ndarray:
        """The last map with so many channels, (1, C, H, W), of a picture (1, S, S, 3) as the
        network takes it, without preprocessing."""
        for node in reversed(self._model.get_ordered_ops()):
            if node.get_type_name() not in ("MaxPool", "Relu"):
                continue
            shape = node.get_output_partial_shape(0)
            if len(shape) == 4 and shape[1].is_static and shape[1].get_length() == channels:
                break
        else:
            raise BadInput(f"--weights {self.path}: has no map of {channels} channels")
        try:
            part = openvino().Model([node.output(0)], self._model.get_parameters())
            colours = part.inputs[0].get_partial_shape()[1]
            if colours.is_static and colours.get_length() == 3:  # (N, 3, H, W), not (N, H, W, 3)
                picture = picture.transpose(0, 3, 1, 2)
            part.reshape(list(picture.shape))
            setting = {"INFERENCE_PRECISION_HINT": "f32"}  # not bf16, where the CPU has it
            result: np.ndarray = core().compile_model(part, "CPU", setting)([picture])[0]
        except (RuntimeError, ValueError) as error:
            raise self._unreadable(error) from error
        return result

    def _unreadable(self, error: Exception) -> BadInput:
        reason = one_line(error)
        return BadInput(f"--weights {self.path}: not an ONNX file that can be read ({reason})")


def _layers(node: Any) -> Iterator[FileLayer]:
    """The layer that ends in this node of the graph, if one does."""
    kind, name = node.get_type_name(), node.get_friendly_name()
    if kind == "BatchNormInference":
        arrays = [_constant(node.input_value(position)) for position in range(1, 5)]
        if all(array is not None for array in arrays):
            yield FileLayer(
                kind="norm", name=name, arrays=tuple(a for a in arrays if a is not None)
            )
    if kind != "Convolution":
        return
    kernel, bias = _constant(node.input_value(1)), _bias(node)
    if kernel is None:
        return
    biases = () if bias is None else (bias,)
    kernel = kernel.transpose(2, 3, 1, 0)
    before = node.input_value(0).get_node()
    depthwise = None
    if before.get_type_name() == "GroupConvolution":
        depthwise = _constant(before.input_value(1))
    if depthwise is None:
        yield FileLayer(kind="convolution", name=name, arrays=(kernel, *biases))
    else:
        channels = depthwise.reshape(depthwise.shape[0], *depthwise.shape[-2:])
        first = channels.transpose(1, 2, 0)[..., None]
        yield FileLayer(kind="separable", name=name, arrays=(first, kernel, *biases))


def _constant(output: Any) -> np.ndarray | None:
    """The numbers of a constant, float32; None for what the graph computes."""
    node = output.get_node()
    while node.get_type_name() in _PASSING:
        node = node.input_value(0).get_node()
    return np.array(node.data, np.float32) if node.get_type_name() == "Constant" else None


def _bias(node: Any) -> np.ndarray | None:
    """What is added to the output of a convolution, one number per channel."""
    users = [target.get_node() for target in node.output(0).get_target_inputs()]
    users = [user for user in users if user.get_type_name() != "ShapeOf"]
    if len(users) != 1 or users[0].get_type_name() != "Add":
        return None
    values = [_constant(users[0].input_value(position)) for position in (0, 1)]
    return next((value.reshape(-1) for value in values if value is not None), None)
