"""Random numbers that belong to each image of a batch, whatever else is in the batch.

They are counter-based (Salmon et al. 2011): number j of draw k for an image is SplitMix64's finaliser (Steele et al.
2014) of the image's key, k and j. The key follows from a seed and the image's pixels, so that it is the same in
batches of every size and order, in every number of processes, and on every device.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_STEP = 0x9E3779B97F4A7C15
_BITS = 24  # of a number: all that a float32 holds
_LEVELS = 1 << _BITS


def image_keys(images: Tensor, seed: int) -> Tensor:
    """A key for each of the images (N, C, H, W) in [0, 1], int64 (N,); images alike to 8 bits share one."""
    levels = (images.detach().flatten(1) * 255).round_().long()
    weights = _mixed(torch.arange(1, levels.shape[1] + 1, device=images.device) * _signed(_STEP))
    return _mixed((levels * weights).sum(1) + _signed(seed * _STEP))


class PerImageNoise(TorchFunctionMode):
    """Inside the block ``uniform_``, ``normal_``, ``rand_like`` and ``randn_like`` give each image its own numbers.

    That holds for tensors of a row (or of m rows in succession) for each image, which are matrices or have as many
    dimensions as images. Others are drawn as they were.

    Args:
        keys: of the batch, int64 (N,), as ``image_keys`` makes them.
    """

    def __init__(self, keys: Tensor) -> None:
        super().__init__()
        self._keys = keys
        self._draws = 0

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """Inside it does nothing; it must be the innermost mode."""
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            self.__enter__()  # type: ignore[no-untyped-call]

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        draw = _DRAWS.get(function)
        if draw is None or kwargs.get("generator") is not None or not self._applies_to(args[0]):
            return function(*args, **kwargs)
        return draw(self._numbers(args[0]), *args, **kwargs)

    def _applies_to(self, like: Tensor) -> bool:
        rows, has_rows = like.shape[:1].numel(), like.ndim == 2 or like.ndim >= 4
        return has_rows and like.is_floating_point() and rows > 0 and rows % len(self._keys) == 0

    def _numbers(self, like: Tensor) -> Tensor:
        """Whole numbers below 2²⁴, evenly, in float32 of the tensor's shape."""
        self._draws += 1
        stream = _mixed(self._keys + _signed(self._draws * _STEP))
        places = torch.arange(like.numel() // len(stream), device=stream.device) * _signed(_STEP)
        numbers: Tensor = _shifted(_mixed(stream[:, None] + places), 64 - _BITS).float()
        return numbers.view(like.shape)


def _uniform(numbers: Tensor) -> Tensor:
    return numbers / _LEVELS


def _normal(numbers: Tensor) -> Tensor:
    # the middles of 2²⁴ parts of (-1, 1), each a float32, and so never an end of it
    return torch.erfinv((2 * numbers + (1 - _LEVELS)) / _LEVELS) * math.sqrt(2)


def _like(sample: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def draw(numbers: Tensor, like: Tensor, *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
        return torch.empty_like(like, dtype=dtype).copy_(sample(numbers))

    return draw


def _uniform_(numbers: Tensor, tensor: Tensor, start: float = 0.0, to: float = 1.0, **named: float) -> Tensor:
    start, to = named.get("from", start), to
    return tensor.copy_(start + (to - start) * _uniform(numbers))


def _normal_(numbers: Tensor, tensor: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    return tensor.copy_(mean + std * _normal(numbers))


_DRAWS: dict[Any, Callable[..., Tensor]] = {
    torch.rand_like: _like(_uniform),
    torch.randn_like: _like(_normal),
    Tensor.uniform_: _uniform_,
    Tensor.normal_: _normal_,
}


def _mixed(bits: Tensor) -> Tensor:
    """SplitMix64's finaliser of int64 numbers, which stand for unsigned ones."""
    bits = (bits ^ _shifted(bits, 30)) * _signed(0xBF58476D1CE4E5B9)
    bits = (bits ^ _shifted(bits, 27)) * _signed(0x94D049BB133111EB)
    return bits ^ _shifted(bits, 31)


def _shifted(bits: Tensor, count: int) -> Tensor:
    """To the right, with zeros from the left, which torch's own shift of a signed number has not."""
    return (bits >> count) & ((1 << (64 - count)) - 1)


def _signed(number: int) -> int:
    """The int64 of the same 64 bits."""
    number %= 2**64
    return number - 2**64 if number >= 2**63 else number
