from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from ccf_plugin.engine.memory import batch_size_errors
from ccf_plugin.errors import UnavailableError

FAULTS_OF_A_SECOND_ALLOCATION = """
import resource, torch
from ccf_plugin.engine.memory import keep_freed_memory
if {keep}:
    assert keep_freed_memory()
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.ones(64, 2**18)  # 64 MB, which glibc would map anew each time
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
def test_freed_memory_is_used_again_without_the_system() -> None:
    def faults(keep: bool) -> int:
        code = FAULTS_OF_A_SECOND_ALLOCATION.format(keep=keep)
        return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)

    kept = min(faults(True) for _ in range(3))  # a system short of memory may take pages back in between
    assert kept < 100 < faults(False)


@pytest.mark.parametrize(
    ("error", "where"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."), "GPU"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory"), "host"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4 bytes."), "host"),
        (MemoryError(), "host"),
    ],
)
def test_running_out_of_memory_names_the_batch_that_failed_and_the_one_to_try(error: Exception, where: str) -> None:
    with pytest.raises(UnavailableError, match=rf"optim.batch_size: .* {where}'s memory, found 128 images.*; try 64"):
        with batch_size_errors("optim.batch_size", 128):
            raise error
    with pytest.raises(UnavailableError, match="smaller model"):
        with batch_size_errors("optim.batch_size", 1):
            raise error


def test_a_real_allocation_that_cannot_be_is_named() -> None:
    with pytest.raises(UnavailableError, match=r"^batch_size: .* found 250 images, too many; try 125"):
        with batch_size_errors("batch_size", 250):
            torch.empty(2**55)


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        with batch_size_errors("batch_size", 250):
            raise RuntimeError("shapes differ")
