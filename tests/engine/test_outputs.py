"""Which tensor of an output the logits are: by identity, for every kind of output that models have."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import ImageClassifierOutput

from ccf_plugin.engine.forward import Forward
from ccf_plugin.engine.outputs import logits_of
from ccf_plugin.errors import InputError

LOGITS, FEATURES, OTHER = torch.rand(4, 3), torch.rand(4, 7), torch.rand(4, 3)
MAP, IDS = torch.rand(4, 7, 2, 2), torch.arange(4)


@dataclass
class Fields:
    ids: Tensor
    features: Tensor
    scores: Tensor


@dataclass
class WithLogits:
    other: Tensor
    logits: Tensor


Two = namedtuple("Two", ("scores", "features"))

# output, what is said of it, K
TAKEN: dict[str, tuple[Any, Any, int | None]] = {
    "a tensor": (LOGITS, None, None),
    "a tensor of which an entry was named": (LOGITS, 1, None),
    "a tuple of one": ((LOGITS,), None, None),
    "a tuple with a map": ((MAP, LOGITS, IDS), None, None),
    "a tuple with features": ((FEATURES, LOGITS), None, 3),
    "a tuple, by index": ((OTHER, LOGITS), 1, None),
    "a tuple, from its end": ((OTHER, LOGITS), -1, 3),
    "the same tensor twice": ((LOGITS, LOGITS), None, None),
    "a list": ([FEATURES, LOGITS], None, 3),
    "a dictionary": ({"logits": LOGITS, "other": OTHER}, None, None),
    "a dictionary, by key": ({"one": OTHER, "two": LOGITS}, "two", None),
    "a dictionary, by place": ({"one": OTHER, "two": LOGITS}, 1, None),
    "a dictionary inside": ({"aux": MAP, "out": {"scores": LOGITS}}, None, None),
    "by a path": ({"heads": [OTHER, LOGITS]}, ("heads", 1), None),
    "Hugging Face's": (ImageClassifierOutput(logits=LOGITS, hidden_states=(MAP, FEATURES)), None, None),
    "Hugging Face's with a loss": (ImageClassifierOutput(loss=torch.tensor(1.0), logits=LOGITS), None, None),
    "a namedtuple": (Two(LOGITS, FEATURES), None, 3),
    "a namedtuple, by name": (Two(OTHER, LOGITS), "features", None),
    "a dataclass": (Fields(IDS, FEATURES, LOGITS), None, 3),
    "a dataclass, by name": (Fields(IDS, OTHER, LOGITS), "scores", None),
    "a dataclass, by place": (Fields(IDS, OTHER, LOGITS), 2, None),
    "a dataclass with logits": (WithLogits(OTHER, LOGITS), None, None),
}

REFUSED: dict[str, tuple[Any, Any, int | None, str]] = {
    "two of one size": ((LOGITS, OTHER), None, 3, r"found 2: output\[0\] of .*output=0 or output=1$"),
    "two of other sizes": ({"a": LOGITS, "b": FEATURES}, None, 5, r"output='a' or output='b'$"),
    "deep ones": ({"x": [LOGITS, OTHER]}, None, None, r"output=\('x', 0\) or output=\('x', 1\)$"),
    "predictions": (
        IDS,
        None,
        None,
        r"^expected a classifier's logits of shape \(N, K\), found an output of",
    ),
    "whole numbers": (torch.zeros(4, 3, dtype=torch.long), None, None, "a classifier's logits"),
    "a map": (MAP, None, None, r"found an output of shape \(4, 7, 2, 2\)"),
    "nothing": (None, None, None, "found an output of type NoneType"),
    "an index beyond": ((LOGITS,), 3, None, r"in the model's output at output=3, found type tuple"),
    "no such key": ({"a": LOGITS}, "b", None, r"at output='b', found type dict of 'a'"),
}


@pytest.mark.parametrize(("output", "chosen", "classes"), TAKEN.values(), ids=TAKEN)
def test_the_logits_are_taken_out(output: Any, chosen: Any, classes: int | None) -> None:
    assert logits_of(output, chosen, classes=classes).data_ptr() == LOGITS.data_ptr()


@pytest.mark.parametrize(("output", "chosen", "classes", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_classifiers_output_is_one_line(output: Any, chosen: Any, classes: int | None, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        logits_of(output, chosen, classes=classes)
    assert "\n" not in str(caught.value)


def test_one_pixel_maps_are_logits() -> None:
    assert torch.equal(logits_of(LOGITS[:, :, None, None]), LOGITS)


class Distilled(nn.Module):
    """As timm's: in train mode both tokens' logits, in eval mode their mean."""

    distilled_training = True

    def forward(self, images: Tensor) -> Any:
        return (images, -images) if self.training else images * 0


@pytest.mark.parametrize("wrap", [lambda model: model, torch.optim.swa_utils.AveragedModel])
def test_timms_distilled_models_answer_with_their_first_token(wrap: Any) -> None:
    forward, images = Forward(wrap(Distilled())), torch.rand(2, 3)
    assert torch.equal(forward.model.train() and forward(images), images)
    assert torch.equal(forward.model.eval() and forward(images), images * 0)


def test_forward_keeps_the_gradient_and_gives_float32() -> None:
    class Half(nn.Module):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            return {"a": images.flatten(1).bfloat16() * 2, "b": images.flatten(1)}

    images = torch.rand(2, 3, 1, 1, requires_grad=True)
    logits = Forward(Half(), output="a")(images)
    assert logits.dtype == torch.float32
    (gradient,) = torch.autograd.grad(logits.sum(), images)
    assert torch.equal(gradient, torch.full_like(images, 2))
