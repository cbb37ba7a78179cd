"""What belongs to the whole process and is changed for the time of a run: it is put back."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


@contextlib.contextmanager
def torch_defaults() -> Iterator[None]:
    """Inside, tensors are made as torch itself makes them, on the CPU in float32, whatever the host has chosen.

    So the same seed gives the same weights, and a checkpoint is not rounded to the host's default dtype.
    """
    dtype = torch.get_default_dtype()
    is_usual = torch.get_default_device().type == "cpu"  # entering a device makes every call of torch's slower
    try:
        torch.set_default_dtype(torch.float32)
        with contextlib.nullcontext() if is_usual else torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)


@contextlib.contextmanager
def preserve_global_state() -> Iterator[None]:
    """Afterwards torch's number of threads, cuDNN's choices and every generator's state are what they were.

    Inside they are the caller's to set, and torch has its own defaults. It can decorate a function.
    """
    threads, cudnn = torch.get_num_threads(), torch.backends.cudnn
    benchmark, tf32 = cudnn.benchmark, cudnn.allow_tf32
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    seed = torch.initial_seed()
    try:
        with torch_defaults():
            yield
    finally:
        torch.set_num_threads(threads)
        cudnn.benchmark, cudnn.allow_tf32 = benchmark, tf32
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if on_cuda is not None:
            torch.cuda.set_rng_state_all(on_cuda)
        elif torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.manual_seed_all(seed)  # what torch.manual_seed had set down for the first use of CUDA
