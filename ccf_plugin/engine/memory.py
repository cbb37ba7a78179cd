"""Memory: how the C library keeps it, how much there is, and errors that say which batch size was too large."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator

import torch
from torch import nn

from ccf_plugin.errors import Fault, UnavailableError

# <malloc.h> of glibc
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_TOP_PAD = 64 * 2**20
_BATCH, _LARGEST_BATCH, _TRIED = 250, 1000, 32
_CPU_MESSAGES = ("not enough memory", "can't allocate memory", "bad allocation")


def keep_freed_memory() -> bool:
    """Let the C library keep what is freed for the next allocation; False where it is not glibc.

    By default glibc returns every large block to the system at once, so that each activation's pages are mapped and
    zeroed anew in every pass. Peak memory is the same; it is given back when the process ends.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1, _M_TOP_PAD: _TOP_PAD}
    return all(mallopt(option, value) for option, value in settings.items())


def host_bytes() -> float:
    """The machine's memory; infinite where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return float("inf")


def largest_batch_size(forward: nn.Module, size: tuple[int, int, int], device: torch.device) -> int:
    """The default batch size of an attack: as many images as fill half of a GPU's free memory.

    At most 1000, beyond which a GPU is no faster; off CUDA 250.

    Args:
        forward: images → logits, in eval mode.
        size: (C, H, W).
    """
    if device.type != "cuda":
        return _BATCH
    with torch.cuda.device(device), torch.enable_grad():
        images = torch.zeros(_TRIED, *size, dtype=torch.float32, device=device, requires_grad=True)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        torch.autograd.grad(forward(images).sum(), images)
        per_image = (torch.cuda.max_memory_allocated() - before) / _TRIED
        free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return max(1, min(_LARGEST_BATCH, int(free / 2 / per_image)))


@contextlib.contextmanager
def batch_size_errors(setting: str, batch_size: int) -> Iterator[None]:
    """Turn running out of memory inside into an error that names the batch size and the one to try.

    Args:
        setting: what the user changes it by, such as ``optim.batch_size``.
        batch_size: what it is.

    Raises:
        UnavailableError: memory ran out, of the GPU or of the host.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        where = "GPU" if isinstance(error, torch.OutOfMemoryError) else "host"
        remedy = f"try {batch_size // 2}" if batch_size > 1 else "a smaller model or image is needed"
        fault = Fault(setting, f"a batch that fits into the {where}'s memory", f"{batch_size} images, too many", remedy)
        raise UnavailableError(fault) from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether it says that the GPU's or the host's memory ran out."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        message in str(error) for message in _CPU_MESSAGES
    )
