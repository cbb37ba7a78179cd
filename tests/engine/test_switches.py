"""Torch's switches for the products of float32, which a run has as torch has them and puts back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.float32 import CHOICES, chosen
from torch import backends

from ccf_plugin.engine.switches import float32_products, preserve_global_state


def _answer(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except RuntimeError:
        return "refused"


def _switches() -> list[Any]:
    older = [
        torch.get_float32_matmul_precision,
        lambda: backends.cuda.matmul.allow_tf32,
        lambda: backends.cudnn.allow_tf32,
    ]
    wide = [getattr(owner, "fp32_precision", None) for owner in (backends, backends.mkldnn, backends.cudnn)]
    return [*map(_answer, older), *wide, float32_products()]


@pytest.mark.parametrize("choose", CHOICES)
def test_products_inside_are_not_rounded_and_switches_are_put_back(choose: Callable[[], None]) -> None:
    with chosen(choose):
        before = _switches()
        with preserve_global_state():
            inside = float32_products()
            backends.cudnn.allow_tf32 = False  # as a run on a GPU does
        assert _switches() == before
    assert {inside[name] for name in ("mkldnn.matmul", "cuda.matmul")} <= {"none", "ieee"}
    assert inside.get("mkldnn.conv", "none") in {"none", "ieee"}
