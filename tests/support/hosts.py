"""Classifiers of the digits whose output is no tensor alone, for ``python:support.hosts:NAME``.

``python:support.hosts:by_hand_NAME`` is the same network with its logits taken out by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

LABELS = {"num_labels": 10, "num_channels": 1}


class Network(nn.Module):
    """A small convolutional network; ``answer`` makes its output of features (N, 6) and logits (N, 10)."""

    def __init__(self, answer: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.head, self.answer = nn.Linear(6, 10), answer

    def forward(self, images: Tensor) -> Any:
        features = self.body(images).mean((2, 3))
        return self.answer(features, self.head(features))


@dataclass
class Scores:
    features: Tensor
    scores: Tensor


class Pair(NamedTuple):
    features: Tensor
    scores: Tensor


class Named(nn.Module):
    """A network of timm whose output is a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.network = timm.create_model("test_efficientnet", in_chans=1, num_classes=10)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.network.forward_head(self.network.forward_features(images), pre_logits=True)
        return {"embedding": features, "scores": self.network.get_classifier()(features)}


def hugging_face() -> nn.Module:
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", **LABELS)
    return ResNetForImageClassification(config)


def hugging_face_vit() -> nn.Module:
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **size, **LABELS))


def timm_dict() -> nn.Module:
    return Named()


def a_dataclass() -> nn.Module:
    return Network(Scores)


def a_namedtuple() -> nn.Module:
    return Network(Pair)


def a_tuple() -> nn.Module:
    return Network(lambda features, logits: (logits, features))


def two_answers() -> nn.Module:
    """Which of them are the logits, only its author knows: the second."""
    return Network(lambda features, logits: {"one": logits.flip(1), "two": logits})


TAKEN: dict[str, Callable[[Any], Tensor]] = {
    "hugging_face": lambda output: output.logits,
    "hugging_face_vit": lambda output: output.logits,
    "timm_dict": lambda output: output["scores"],
    "a_dataclass": lambda output: output.scores,
    "a_namedtuple": lambda output: output.scores,
    "a_tuple": lambda output: output[0],
    "two_answers": lambda output: output["two"],
}
OUTPUTS = {"two_answers": "two"}  # what must be said of a host


class ByHand(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.host, self.take = globals()[name](), TAKEN[name]

    def forward(self, images: Tensor) -> Tensor:
        return self.take(self.host(images))


def __getattr__(name: str) -> Callable[[], nn.Module]:
    if not name.startswith("by_hand_"):
        raise AttributeError(name)
    return lambda: ByHand(name.removeprefix("by_hand_"))


def both(name: str) -> tuple[nn.Module, nn.Module]:
    """A host and its twin by hand, of the same weights, in eval mode."""
    made = []
    for make in (globals()[name], lambda: ByHand(name)):
        torch.manual_seed(0)
        made.append(make().eval())
    return made[0], made[1]
