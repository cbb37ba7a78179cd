"""How a host lets torch round what float32 products read: by its older switches, and from torch 2.9 by newer ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import backends

_newer = pytest.mark.skipif(
    not hasattr(backends.cuda.matmul, "fp32_precision"), reason="this torch has the older switches alone"
)


def _set(owner: object, precision: str) -> Callable[[], None]:
    return lambda: setattr(owner, "fp32_precision", precision)


CHOICES = [
    pytest.param(lambda: torch.set_float32_matmul_precision("high"), id="high"),
    pytest.param(lambda: torch.set_float32_matmul_precision("medium"), id="medium"),
    pytest.param(lambda: setattr(backends.cudnn, "allow_tf32", False), id="cudnn without tf32"),
    *(
        pytest.param(_set(owner, precision), id=f"{name} {precision}", marks=_newer)
        for name, owner, precision in [
            ("all", backends, "tf32"),
            ("all", backends, "bf16"),
            ("cuda.matmul", backends.cuda.matmul, "tf32"),
            ("cudnn.conv", getattr(backends.cudnn, "conv", None), "ieee"),
            ("mkldnn", backends.mkldnn, "bf16"),
            ("mkldnn.matmul", getattr(backends.mkldnn, "matmul", None), "bf16"),
            ("mkldnn.conv", getattr(backends.mkldnn, "conv", None), "bf16"),
        ]
    ),
]


@contextmanager
def chosen(choose: Callable[[], None]) -> Iterator[None]:
    """Inside, what the host chose; afterwards torch's own."""
    try:
        choose()
        yield
    finally:
        if hasattr(backends.cuda.matmul, "fp32_precision"):
            parts = (backends.mkldnn.matmul, backends.mkldnn.conv, backends.cuda.matmul)
            for owner in (backends, backends.mkldnn, backends.cudnn, *parts):
                owner.fp32_precision = "none"
        torch.set_float32_matmul_precision("highest")
        backends.cudnn.allow_tf32 = True
