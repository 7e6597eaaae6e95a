"""Cutting a network in two at a layer: the trunk before it, and the body after it.

The network is traced (torch.fx) just deep enough to see the layer; every other module stays a call.
So this module knows no architecture.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import fx, nn

from featurecache.errors import BadInput, UnknownName
from featurecache.text import one_line


class Body(nn.Module):
    """The part of a network after a cut. Tracing fixes the mode of functions such as dropout, so it
    has a graph for each mode, over the same modules."""

    def __init__(self, training: nn.Module, evaluation: nn.Module) -> None:
        super().__init__()
        self.evaluation = evaluation
        self._training = [training]  # not registered: it has the same modules

    def train(self, mode: bool = True) -> Body:
        super().train(mode)
        self._training[0].train(mode)
        return self

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        graph = self._training[0] if self.training else self.evaluation
        out: torch.Tensor = graph(maps)
        return out


def trunk_until(network: nn.Module, layer: str) -> nn.Module:
    """The network until the output of `layer`, in evaluation mode. Shares the network's tensors.

    Raises UnknownName, or BadInput if the network can't be traced.
    """
    graph = _traced(network.eval(), [layer])
    return _before(network, graph, _call_of(network, graph, layer))


def trunk_and_body(network: nn.Module, first: str) -> tuple[nn.Module, Body]:
    """The network before the layer `first`, and from it on. Both share the network's tensors.

    Raises UnknownName, or BadInput if what follows `first` needs more than its input.
    """
    after = {}
    for mode in (True, False):
        graph = _traced(network.train(mode), [first])
        source = _input_of(network, graph, first)
        after[mode] = _after(network, graph, source, first)
    return _before(network, graph, source), Body(after[True], after[False])


def layer_before(network: nn.Module, first: str, known: str) -> str:
    """The layer whose output the layer `first` takes, as deep as `known` needs it to be named."""
    names = [first, known] if known in dict(network.named_modules()) else [first]
    graph = _traced(network.eval(), names)
    return str(_input_of(network, graph, first).target)


class _Outline(fx.Tracer):
    """Traces only the modules around some layers."""

    def __init__(self, layers: Iterable[str]) -> None:
        super().__init__()
        self._around = {
            ".".join(layer.split(".")[:depth])
            for layer in layers
            for depth in range(1, layer.count(".") + 1)
        }

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self._around


def _traced(network: nn.Module, layers: Iterable[str]) -> fx.Graph:
    known = [name for name, _ in network.named_modules() if name]
    for layer in layers:
        if layer not in known:
            raise UnknownName("layer", layer, known, where=type(network).__name__)
    try:
        return _Outline(layers).trace(network)
    except Exception as error:  # whatever the code of an architecture raises for symbols
        raise BadInput(
            f"{type(network).__name__} can't be cut at {', '.join(layers)} ({one_line(error)}); "
            "use a network of plain stages, or train all of it"
        ) from error


def _call_of(network: nn.Module, graph: fx.Graph, layer: str) -> fx.Node:
    calls = [n for n in graph.nodes if n.op == "call_module" and n.target == layer]
    if len(calls) != 1:
        raise BadInput(
            f"{type(network).__name__}: layer {layer} is called {len(calls)} times in a pass, so "
            "it can't be cut there; name a module that is called once"
        )
    call: fx.Node = calls[0]
    return call


def _input_of(network: nn.Module, graph: fx.Graph, layer: str) -> fx.Node:
    inputs = _call_of(network, graph, layer).all_input_nodes
    if len(inputs) != 1:
        raise BadInput(
            f"{type(network).__name__}: layer {layer} takes {len(inputs)} inputs, so no cut is "
            "before it; name a layer with one"
        )
    return inputs[0]


def _before(network: nn.Module, graph: fx.Graph, last: fx.Node) -> nn.Module:
    part = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        copies[node] = part.node_copy(node, copies.__getitem__)
        if node is last:
            break
    part.output(copies[last])
    return fx.GraphModule(network, part)


def _after(network: nn.Module, graph: fx.Graph, source: fx.Node, first: str) -> nn.Module:
    part = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {source: part.placeholder("maps")}
    nodes = list(graph.nodes)
    try:
        for node in nodes[nodes.index(source) + 1 :]:
            copies[node] = part.node_copy(node, copies.__getitem__)
    except KeyError as error:
        raise BadInput(
            f"{type(network).__name__}: what follows layer {first} also reads {error.args[0]}, "
            "so the network can't be cut before it; name the first layer of a stage"
        ) from error
    return fx.GraphModule(network, part)
