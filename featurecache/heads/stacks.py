"""Many heads of one shape as one network: each tensor of M heads is stacked into one tensor.

A small head costs more in calls than in arithmetic, so M heads are trained with the calls of one.
Members that see the same rows share one gather and one matrix product in the first layer. The
layout is (M, width, B), features before rows, so that the channels of all members are the channels
of one batch norm and no layer has to transpose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional

from featurecache.heads.attention import AttentionPool, pooled_maps
from featurecache.heads.head_networks import build
from featurecache.training import optimizers
from featurecache.training.head_shapes import HeadSpec
from featurecache.training.losses import cross_entropy, hits
from featurecache.training.settings import Optimizer, Rate

State = dict[str, torch.Tensor]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # like losses.cross_entropy
_DROPOUT_LEVELS = 1 << 16  # dropout draws 16 bits per feature


class Stack:
    """M heads of one shape and optimizer in training; their learning rates may differ.

    It computes what `build` and torch.optim would compute for each head by itself, up to the
    order of floating-point sums. Only dropout draws differently: each member has its own generator,
    and a draw takes 16 random bits per feature, since torch's own draws are slow on most CPUs. The
    dropout rate is therefore rounded to a multiple of 2**-16. DropConnect draws its weights the
    same way.
    """

    def __init__(
        self,
        heads: Sequence[nn.Sequential],
        spec: HeadSpec,
        optimizer: Optimizer,
        device: torch.device,
        *,
        is_half: bool = False,
    ) -> None:
        """Copy the state of `heads`, built by `build` from `spec`, to `device`. With `is_half`,
        the matrix products of training are in bf16: their inputs, results and gradients are rounded
        to it. Everything else stays float32."""
        states = [head.state_dict() for head in heads]
        self.layers = dict(heads[0].named_children())
        self.spec, self.optimizer, self.is_half = spec, optimizer, is_half
        self.state = {n: torch.stack([s[n] for s in states]).to(device) for n in states[0]}
        self.trained = [name for name, _ in heads[0].named_parameters()]
        self.weights = [f"{n}.weight" for n, m in self.layers.items() if isinstance(m, nn.Linear)]
        self.masks: State = {}  # 0 for weights that were pruned, else 1
        self.moments = [
            {name: torch.zeros_like(self.state[name]) for name in self.trained}
            for _ in range(optimizers.moments(optimizer))
        ]
        # One count per member and tensor, since torch.optim counts the steps of each tensor.
        self.steps = {name: torch.zeros(len(heads), device=device) for name in self.trained}
        self._begin()

    def _begin(self) -> None:
        for name in self.trained:
            self.state[name].requires_grad_()

    def __len__(self) -> int:
        return len(next(iter(self.state.values())))

    def part(self, index: int) -> Stack:
        """The member at `index` as a stack of one that shares memory with this stack.

        It does not see a later `prune`: get the part again after pruning.
        """
        member = object.__new__(Stack)
        member.layers, member.spec, member.optimizer = self.layers, self.spec, self.optimizer
        member.trained, member.weights = self.trained, self.weights
        member.is_half = self.is_half
        members = slice(index, index + 1)
        member.state = {name: tensor.detach()[members] for name, tensor in self.state.items()}
        member.moments = [
            {n: tensor[members] for n, tensor in moment.items()} for moment in self.moments
        ]
        member.steps = {name: tensor[members] for name, tensor in self.steps.items()}
        member.masks = {name: tensor[members] for name, tensor in self.masks.items()}
        member._begin()
        return member

    def head(self, index: int, features: int, classes: int) -> nn.Sequential:
        """The member at `index` as a separate module on the CPU, for evaluation."""
        with torch.device("meta"):  # draws no initial weights
            module = build(features, classes, self.spec)
        state = {name: tensor[index].detach().cpu().clone() for name, tensor in self.state.items()}
        module.load_state_dict(state, assign=True)
        return module.requires_grad_().eval()

    def logits(
        self, x: torch.Tensor, dropping: Sequence[torch.Generator] | None = None
    ) -> torch.Tensor:
        """Logits (M, C, B) of rows x: (B, D) shared by all members, or (M, B, D).

        `dropping`, one generator per member, turns on training mode: batch norm uses the statistics
        of these rows and updates its running statistics, and dropout is applied.
        """
        h = x.transpose(-1, -2)
        drop_rates = iter([*self.spec.per_layer("drop_connect"), 0.0])
        for name, layer in self.layers.items():
            tensors = {part: self.state[f"{name}.{part}"] for part in layer.state_dict()}
            if isinstance(layer, nn.Linear):
                weight, rate = tensors["weight"], next(drop_rates)
                if rate > 0 and dropping is not None:
                    weight = weight * _dropout_mask(weight.shape, rate, dropping)
                product = _half_linear if self.is_half and dropping is not None else _linear
                h = product(h, weight, tensors["bias"])
            elif isinstance(layer, AttentionPool):
                h = pooled_maps(h, tensors["queries"])
            elif isinstance(layer, nn.BatchNorm1d):
                if dropping is not None:
                    tensors["num_batches_tracked"] += 1
                h = functional.batch_norm(
                    h.reshape(1, -1, h.shape[-1]),
                    tensors["running_mean"].view(-1),
                    tensors["running_var"].view(-1),
                    tensors["weight"].view(-1),
                    tensors["bias"].view(-1),
                    training=dropping is not None,
                    momentum=layer.momentum or 0.0,
                    eps=layer.eps,
                ).view(h.shape)
            elif isinstance(layer, nn.LayerNorm):
                normal = functional.layer_norm(h.transpose(1, 2), layer.normalized_shape)
                h = (
                    normal.transpose(1, 2) * tensors["weight"][..., None]
                    + tensors["bias"][..., None]
                )
            elif isinstance(layer, nn.Dropout):
                if dropping is not None:
                    shape = torch.Size([len(self), *h.shape[-2:]])  # h may be shared by all members
                    h = h * _dropout_mask(shape, layer.p, dropping)
            else:
                h = layer(h)
        return h

    def step(
        self,
        x: torch.Tensor,
        target: torch.Tensor,
        rates: Sequence[Rate],
        dropping: Sequence[torch.Generator],
        loss: Loss = cross_entropy,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Train on one minibatch: x as for `logits`, target (M, B) or, shared by all members, (B,).

        Returns each member's `loss` and number of correct rows, (M,), summed over the minibatch.
        The penalties of the spec enter the gradients, but not the loss returned.
        """
        logits = self.logits(x, dropping)
        losses = loss(logits, target).sum(1)
        gradients = torch.autograd.grad(
            losses.sum() / logits.shape[-1], [self.state[name] for name in self.trained]
        )
        self._penalise(dict(zip(self.trained, gradients, strict=True)))
        # Members with separate rows may have taken different numbers of steps so far.
        self._update(gradients, rates, together=x.dim() == 2)
        return losses.detach(), hits(logits, target).sum(1)

    @torch.no_grad()
    def _penalise(self, gradients: State) -> None:
        for name, l1, l2 in zip(
            self.weights, self.spec.per_layer("l1"), self.spec.per_layer("l2"), strict=True
        ):
            if l1 > 0:
                gradients[name].add_(self.state[name].sign(), alpha=l1)
            if l2 > 0:
                gradients[name].add_(self.state[name], alpha=2 * l2)

    @torch.no_grad()
    def prune(self, share: float) -> None:
        """Set this share of the weights of each linear layer of each member to zero permanently:
        those of smallest magnitude (pruning per layer, Han et al. 2015)."""
        for name in self.weights:
            sizes = self.state[name].abs().flatten(1)
            smallest = sizes.argsort(1)[:, : round(share * sizes.shape[1])]
            mask = torch.ones_like(sizes).scatter_(1, smallest, 0.0)
            self.masks[name] = mask.view_as(self.state[name])
            self.state[name].mul_(self.masks[name])

    @torch.no_grad()
    def _update(
        self, gradients: Sequence[torch.Tensor], rates: Sequence[Rate], together: bool
    ) -> None:
        """One optimizer step: one call per member, or per run of members with equal rates."""
        start = 0
        for stop in range(1, len(rates) + 1):
            if together and stop < len(rates) and rates[stop] == rates[start]:
                continue
            run, rate = slice(start, stop), rates[start]
            parameters = [self.state[name][run] for name in self.trained]
            # Fused kernels need contiguous gradients.
            member_gradients = [gradient[run].contiguous() for gradient in gradients]
            moments = [[moment[name][run] for name in self.trained] for moment in self.moments]
            # The members of a run have taken the same number of steps: the first counts for all.
            counts = [self.steps[name][start] for name in self.trained]
            optimizers.step(self.optimizer, rate, parameters, member_gradients, moments, counts)
            for name, count in zip(self.trained, counts, strict=True):
                self.steps[name][run] = count
            start = stop
        for name, mask in self.masks.items():
            self.state[name].mul_(mask)

    def state_dict(self) -> dict[str, State]:
        """Every tensor that training changes."""
        named = {f"moment-{k}": moment for k, moment in enumerate(self.moments)}
        heads = {name: tensor.detach() for name, tensor in self.state.items()}
        return {"heads": heads, "steps": self.steps, "masks": self.masks, **named}

    def load_state_dict(self, state: dict[str, State]) -> None:
        """Restore what `state_dict` returned for a stack of the same members. Raises ValueError or
        KeyError for the state of a different stack."""
        where = next(iter(self.state.values())).device
        masks = {name: mask.to(where) for name, mask in state["masks"].items()}
        if masks:
            self.check(masks, {name: self.state[name] for name in self.weights})
        self.masks = masks
        for kind, tensors in self.state_dict().items():
            self.check(state[kind], tensors)
            for name, tensor in tensors.items():
                tensor.copy_(state[kind][name])

    @staticmethod
    def check(state: State, like: State) -> None:
        """Raise ValueError unless the tensors have the same names, shapes and types."""
        if {n: (t.shape, t.dtype) for n, t in state.items()} != {
            n: (t.shape, t.dtype) for n, t in like.items()
        }:
            raise ValueError("tensors of another stack")

    def snapshot(self, index: int) -> State:
        """A copy of the weights and statistics of the member at `index`."""
        return {name: tensor.detach()[index].clone() for name, tensor in self.state.items()}

    def restore(self, index: int, saved: State) -> None:
        """Restore the member at `index` from a `snapshot`; its optimizer's state is unchanged."""
        for name, tensor in self.state.items():
            tensor.detach()[index].copy_(saved[name])


def _linear(h: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """A linear layer's output (M, out, B) for h, (in, B) shared by all members or (M, in, B), and
    weight (M, out, in)."""
    members, out, fan_in = weight.shape
    if h.dim() == 3 and members > 1:
        return torch.baddbmm(bias[..., None], weight, h)
    flat = h if h.dim() == 2 else h[0]
    return torch.addmm(bias.view(-1, 1), weight.view(-1, fan_in), flat).view(members, out, -1)


def _half_linear(h: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """As `_linear`, computed in bf16; what goes in and comes out is float32."""
    return _linear(h.bfloat16(), weight.bfloat16(), bias.bfloat16()).float()


def _dropout_mask(
    shape: torch.Size, rate: float, generators: Sequence[torch.Generator]
) -> torch.Tensor:
    """(M, width, B) float32: 0 where a feature is dropped, else 1 / (1 - rate)."""
    features = math.prod(shape[1:])
    word_shape = (len(generators), -(-features // 4))
    words = torch.empty(word_shape, dtype=torch.int64, device=generators[0].device)
    for row, generator in zip(words, generators, strict=True):
        row.random_(-(2**63), None, generator=generator)
    dropped = min(round(rate * _DROPOUT_LEVELS), _DROPOUT_LEVELS - 1)
    draws = words.view(torch.int16)[:, :features].reshape(shape)
    mask = torch.empty(shape, device=words.device)
    torch.ge(draws, dropped - _DROPOUT_LEVELS // 2, out=mask)
    return mask.mul_(_DROPOUT_LEVELS / (_DROPOUT_LEVELS - dropped))
