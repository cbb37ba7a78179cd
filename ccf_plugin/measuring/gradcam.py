"""Grad-CAM (Selvaraju et al. 2017) by captum, for convolutional networks and for transformers' grids of tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ccf_plugin.engine.forward import Forward
from ccf_plugin.engine.modes import evaluation_mode
from ccf_plugin.errors import Fault, InputError, did_you_mean, missing_extra

_MOST_PREFIX_TOKENS = 8  # class, distillation and register tokens, which stand before the grid's


@dataclass(frozen=True)
class Layer:
    """A layer whose output is a grid of positions: (N, C, H, W), (N, H, W, C) or (N, prefix + H·W, C)."""

    name: str
    form: Literal["channels first", "channels last", "tokens"]
    height: int
    width: int
    prefix: int = 0

    def to_map(self, output: Tensor) -> Tensor:
        """The grid as (N, C, H, W)."""
        if self.form == "channels first":
            return output
        if self.form == "channels last":
            return output.permute(0, 3, 1, 2)
        tokens = output[:, self.prefix :].transpose(1, 2)
        return tokens.reshape(*tokens.shape[:2], self.height, self.width)

    def from_map(self, output: Tensor, grid: Tensor) -> Tensor:
        """The layer's output with the grid put back in."""
        if self.form == "channels first":
            return grid
        if self.form == "channels last":
            return grid.permute(0, 2, 3, 1)
        return torch.cat([output[:, : self.prefix], grid.flatten(2).transpose(1, 2)], 1)


def grad_cam(forward: Forward, images: Tensor, labels: Tensor, layer: Layer) -> Tensor:
    """Where a model looks for the class ``labels``: (N, H, W) in [0, 1], bilinear from the layer's grid.

    Each map is divided by its largest value; a map without a positive one is zero.

    Args:
        forward: the model's pass; its modes and gradients are as before.
        images: (N, C, H, W) float in [0, 1].
        labels: (N,) int64.
        layer: of ``find_layer``.

    Raises:
        UnavailableError: captum is not installed.
    """
    try:
        from captum.attr import LayerAttribution, LayerGradCam
    except ImportError as error:
        raise missing_extra("saliency", "captum", "saliency") from error
    with evaluation_mode(forward), torch.enable_grad(), _grid_of(forward.model, layer) as grid:
        explained = LayerGradCam(forward, grid)
        maps = explained.attribute(images.clone().requires_grad_(), target=labels, relu_attributions=True)
        maps = LayerAttribution.interpolate(maps.detach(), tuple(images.shape[2:]), "bilinear").squeeze(1).clamp(min=0)
    largest = maps.amax((1, 2), keepdim=True)
    return torch.where(largest > 0, maps / largest.clamp(min=torch.finfo(maps.dtype).tiny), 0.0)


def find_layer(forward: Forward, images: Tensor, name: str | None = None) -> Layer:
    """The last layer whose output is a grid of positions that the logits depend on; or the one named.

    In a convolutional network that is the last map at the last convolution's resolution; in a transformer the last
    tokens of the patches that count, which for a class token is the normalisation before the last attention.

    Args:
        forward: the model's pass.
        images: a few, (N, C, H, W) float in [0, 1].

    Raises:
        InputError: there is none (no convolution and no grid of tokens), or the named layer's output is none.
    """
    model = forward.model
    outputs: list[tuple[str, nn.Module, Tensor]] = []
    count = len(images)

    def note(name: str, module: nn.Module, _: Any, output: Any) -> None:
        # windows of attention stand in the first dimension; images are what a map is of
        if isinstance(output, Tensor) and output.ndim in (3, 4) and len(output) == count and output.requires_grad:
            outputs.append((name, module, output))

    with contextlib.ExitStack() as hooks, evaluation_mode(model), torch.enable_grad():
        for module_name, module in model.named_modules():
            hooks.enter_context(module.register_forward_hook(partial(note, module_name)))
        logits = forward(images.clone().requires_grad_())
    convolved = [tuple(out.shape[1:]) for _, module, out in outputs if isinstance(module, nn.Conv2d)]
    convolved = [shape for shape in convolved if shape[1] * shape[2] > 1]
    grids = [(layer, out) for place, module, out in outputs if (layer := _grid_layer(place, module, out, convolved))]
    if name is not None:
        grids = [(layer, out) for layer, out in grids if layer.name == name][-1:]
        if not grids:
            hint = did_you_mean(name, [known for known, _ in model.named_modules()])
            raise InputError(Fault("layer", "a layer whose output is a grid of positions", f"{name!r}{hint}"))
    slopes = torch.autograd.grad(logits.amax(1).sum(), [out for _, out in grids], allow_unused=True) if grids else ()
    for (layer, _), slope in reversed(list(zip(grids, slopes, strict=True))):
        if slope is not None and bool((layer.to_map(slope) != 0).any()):
            return layer
    raise InputError(
        "expected a model with a convolution or a grid of tokens, found none whose output is a map over positions "
        "that the logits depend on; Grad-CAM needs one"
    )


def _grid_layer(name: str, module: nn.Module, output: Tensor, convolved: list[tuple[int, ...]]) -> Layer | None:
    """The output as a grid, judged by the shapes that convolutions gave; None where it is none."""
    if not convolved:
        return None
    if output.ndim == 3:
        tokens, channels = output.shape[1:]
        for depth, height, width in reversed(convolved):
            prefix = tokens - height * width
            if depth == channels and 0 <= prefix <= _MOST_PREFIX_TOKENS:
                return Layer(name, "tokens", height, width, prefix)
        return None
    _, height, width = convolved[-1]
    if tuple(output.shape[2:]) == (height, width):
        return Layer(name, "channels first", height, width)
    # As in Swin. An attention's normalised queries, (N, heads, T, d), do not have the image's proportions.
    in_proportion = output.shape[1] * width == output.shape[2] * height
    if isinstance(module, nn.LayerNorm) and module.normalized_shape == tuple(output.shape[3:]) and in_proportion:
        return Layer(name, "channels last", output.shape[1], output.shape[2])
    return None


@contextlib.contextmanager
def _grid_of(model: nn.Module, layer: Layer) -> Iterator[nn.Module]:
    """A module that the layer's grid passes through as (N, C, H, W): what captum, made for convolutions, explains."""
    grid = nn.Identity()

    def pass_through(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        # a copy, because a layer after it may work in place
        return layer.from_map(output, grid(layer.to_map(output).clone()).clone())

    with model.get_submodule(layer.name).register_forward_hook(pass_through):
        yield grid
