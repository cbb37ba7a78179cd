"""What a user may have meant otherwise though nothing is wrong: warnings, each given once."""

from __future__ import annotations

import warnings
from collections.abc import Container

from torch import nn

from ccf_plugin.probe.calls import PassRecord
from ccf_plugin.probe.head import Head


class Doubts:
    """The warnings of one probe; they name the user's line that called the probe."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def own_call(self, model: object) -> None:
        """Warn of a class with a ``__call__`` of its own, which hooks do not see; torch's wrappers change no output."""
        call = type(model).__call__ if isinstance(model, nn.Module) else nn.Module.__call__
        if call is nn.Module.__call__ or str(getattr(call, "__module__", "")).startswith("torch."):
            return
        text = (
            f"{type(model).__name__} has a __call__ of its own: what it does after forward is not seen, and the output "
            "of forward is what is measured; move it into forward"
        )
        self._tell("own call", text, stacklevel=4)

    def other_passes(self, record: PassRecord) -> None:
        """Warn that another pass might be meant, such as TRADES' adversarial one before its clean one."""
        if record.alike <= 1:
            return
        mode = "train" if record.training else "eval"
        text = (
            f"{record.alike} passes in {mode} mode on images without a gradient ran before this update; the last "
            "counts. If another is meant, run it inside `with probe.capture():`"
        )
        self._tell("other passes", text, stacklevel=4)

    def runs_outside(self, head: Head | None, layers: Container[str], bystander: str | None) -> None:
        """Warn that the head has run since the pass that counts, where no hook of the model sees it.

        Args:
            head: where it is.
            layers: those that have run.
            bystander: the layer that tells of it, where the head is no layer.
        """
        names = [] if head is None else [name for name in head.name.split(" + ") if name in layers]
        ran = f"the head {' and '.join(map(repr, names))}"
        if head is not None and bystander is not None and bystander in layers:
            ran = f"the layer {bystander!r} before the head {head.name!r}"
        elif not names:
            return
        text = (
            f"{ran} has run after the pass that counts, in no pass of the model, "
            "as by model.forward(x) or by a part of it; if that is meant to count, call the model: model(x)"
        )
        self._tell("runs outside", text, stacklevel=5)

    def _tell(self, doubt: str, text: str, stacklevel: int) -> None:
        if doubt not in self._told:
            self._told.add(doubt)
            warnings.warn(text, stacklevel=stacklevel)
