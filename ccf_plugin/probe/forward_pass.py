"""What one forward pass showed of the model's head."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ccf_plugin.errors import InputError
from ccf_plugin.probe.attribution import gradient_attribution
from ccf_plugin.probe.calls import LayerCall
from ccf_plugin.probe.detect import GRAPH_GONE
from ccf_plugin.probe.linear_map import Reading

# Ends the place of a head that was named by hand and makes other logits than the model's output.
OWN_OUTPUT = ", for its own output: the model's logits are not g Wᵀ and one constant row of it"


@dataclass(frozen=True)
class ForwardPass:
    """What one forward pass showed, detached: features (N, n), logits (N, K), weight (K, n) of that pass.

    With head='gradient' there is no one weight: ``members`` are groups of runs whose inputs, with ``graph`` (N, K),
    give g ⊙ ∂logit_y/∂g; runs of one group are added.
    """

    features: Tensor
    logits: Tensor
    weight: Tensor | None
    training: bool
    dtype: torch.dtype
    place: str
    reading: Reading | None = None
    members: tuple[tuple[LayerCall, ...], ...] = ()
    graph: Tensor | None = None
    reason: str = ""  # why no other head was found, where the reading misses the logits

    @property
    def shape(self) -> tuple[int, int]:
        """(K, n)."""
        return len(self.weight) if self.weight is not None else self.logits.shape[1], self.features.shape[1]

    def centred(self) -> ForwardPass:
        """The same with the rows of W less their mean, or each sample's logits less theirs: what the softmax sees."""
        weight, graph = self.weight, self.graph
        with torch.enable_grad():
            return replace(
                self,
                weight=None if weight is None else weight - weight.mean(0),
                graph=None if graph is None else graph - graph.mean(1, keepdim=True),
            )

    def gradient_attribution(self, labels: Tensor, rows: slice) -> Tensor:
        """A(x) by gradients, (len(labels), n): groups of members side by side, positions of one member added.

        Raises:
            InputError: the pass's graph is gone.
        """
        assert self.graph is not None  # noqa: S101  (only asked of passes that keep one)
        calls = [call for group in self.members for call in group]
        inputs = [call.inputs for call in calls if call.inputs is not None]
        try:
            shares = iter(gradient_attribution(inputs, self.graph, labels, rows=rows))
        except RuntimeError as error:
            raise InputError(GRAPH_GONE.format(str(error).splitlines()[0])) from error
        groups = [[replace(call, inputs=next(shares)).positions().sum(1) for call in group] for group in self.members]
        return torch.cat([torch.stack(group).sum(0) for group in groups], 1)
