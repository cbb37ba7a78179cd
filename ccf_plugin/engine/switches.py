"""What belongs to the whole process and is changed for the time of a run: it is put back."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from operator import attrgetter
from typing import Any

import numpy as np
import torch


@contextlib.contextmanager
def torch_defaults() -> Iterator[None]:
    """Inside, tensors are made as torch itself makes them, on the CPU in float32, whatever the host has chosen.

    So the same seed gives the same weights, and a checkpoint is not rounded to the host's default dtype.
    """
    dtype = torch.get_default_dtype()
    is_usual = True  # entering a device makes every call of torch's slower
    with contextlib.suppress(AttributeError):  # torch 2.6 fails where a default was taken back: then it is the CPU
        is_usual = torch.get_default_device().type == "cpu"
    try:
        torch.set_default_dtype(torch.float32)
        with contextlib.nullcontext() if is_usual else torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)


def float32_products() -> dict[str, str]:
    """What the host lets torch round the float32 inputs of its products to, by backend: none or ieee, tf32, bf16.

    "none" is as the backend does it by itself: not at all.
    """
    if _IS_EACH_SWITCHED:
        return {path: part.fp32_precision for path, part in zip(_PRODUCTS, _parts(*_PRODUCTS), strict=True)}
    matmul = {"highest": "ieee", "high": "tf32", "medium": "bf16"}[torch.get_float32_matmul_precision()]
    on_cuda = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    cuda_matmul, cudnn_conv = ("tf32" if allowed else "ieee" for allowed in on_cuda)
    return {"mkldnn.matmul": matmul, "cuda.matmul": cuda_matmul, "cudnn.conv": cudnn_conv}


# from torch 2.9, where the older switches refuse to answer if these were used
_IS_EACH_SWITCHED = hasattr(torch.backends.cuda.matmul, "fp32_precision")
_PRODUCTS = ("mkldnn.matmul", "mkldnn.conv", "cuda.matmul", "cudnn.conv", "cudnn.rnn")


def _parts(*paths: str) -> tuple[Any, ...]:
    parts: tuple[Any, ...] = attrgetter(*paths)(torch.backends)
    return parts


@contextlib.contextmanager
def _unrounded_float32() -> Iterator[None]:
    """Inside, matrix products of float32 are in float32; afterwards they and cuDNN's are what the host has chosen.

    What was set by torch's older switches is put back by them, else by the newer.
    """
    with contextlib.ExitStack() as undo:
        try:
            undo.callback(setattr, torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)
        except RuntimeError:
            for part in _parts("cudnn.rnn", "cudnn.conv"):
                undo.callback(setattr, part, "fp32_precision", part.fp32_precision)
        with contextlib.suppress(RuntimeError):
            if (chosen := torch.get_float32_matmul_precision()) != "highest":
                undo.callback(torch.set_float32_matmul_precision, chosen)
                torch.set_float32_matmul_precision("highest")
        for part in (torch.backends, *_parts("mkldnn", *_PRODUCTS[:3])) if _IS_EACH_SWITCHED else ():
            if (precision := part.fp32_precision) in ("tf32", "bf16"):
                undo.callback(setattr, part, "fp32_precision", precision)
                part.fp32_precision = "ieee"
        yield


@contextlib.contextmanager
def preserve_global_state() -> Iterator[None]:
    """Afterwards torch's number of threads, how it multiplies and every generator's state are what they were.

    Inside they are the caller's to set, and torch has its own defaults. It can decorate a function.
    """
    threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    seed = torch.initial_seed()
    try:
        with torch_defaults(), _unrounded_float32():
            yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = benchmark
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if on_cuda is not None:
            torch.cuda.set_rng_state_all(on_cuda)
        elif torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.manual_seed_all(seed)  # what torch.manual_seed had set down for the first use of CUDA
