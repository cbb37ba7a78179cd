"""The processes of a training job: one, or several that accelerate or torchrun started."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.tracking import get_available_trackers
from accelerate.utils import GradientAccumulationPlugin, ProjectConfiguration
from torch import Tensor, nn

from ccf_plugin.engine.devices import job_device, resolve_device
from ccf_plugin.errors import InputError, UnavailableError, missing_extra
from ccf_plugin.integrations.trackers import class_figures, log_picture
from ccf_plugin.job import job_size
from ccf_plugin.probe.distributed import gather_objects
from ccf_plugin.probe.result import CrossClassResult
from ccf_plugin.runs.layout import TRACKERS
from ccf_plugin.runs.log import EpochRow

# What accelerate's environment may ask for that this loop cannot do: it splits the weights up.
_SPLITTING = ("DEEPSPEED", "FSDP", "MEGATRON_LM", "PARALLELISM_CONFIG")


class Processes:
    """This process among those of the job. accelerate makes the group, wraps the model and reduces.

    Args:
        device: its name, as ``engine.devices.resolve_device`` takes it.
        sync_batchnorm: whether BatchNorm takes its statistics over all processes.
        trackers: names of accelerate's trackers, which write into ``folder``.
        folder: of the run.
    """

    def __init__(
        self, device: str, *, sync_batchnorm: bool = False, trackers: Sequence[str] = (), folder: Path = Path()
    ) -> None:
        known = sorted(str(kind) for kind in get_available_trackers())
        for name in trackers:
            if name == "tensorboard" and name not in known:
                raise missing_extra("track", "tensorboard", "tensorboard")
            if name not in known:
                raise UnavailableError(
                    f"track: expected a tracker that is installed ({', '.join(known) or 'none is'}), found {name!r}"
                )
        self._accelerator = _accelerator(device, trackers, folder)
        self.count: int = self._accelerator.num_processes
        self.rank: int = self._accelerator.process_index
        self.device = job_device(device)
        self.is_main: bool = self.rank == 0
        if sync_batchnorm and self.count > 1 and self.device.type == "cpu":
            raise InputError("sync_batchnorm: expected CUDA devices, which torch's SyncBatchNorm needs, found the CPU")
        self._sync_batchnorm = sync_batchnorm and self.count > 1

    def wrap(self, model: nn.Module) -> tuple[nn.Module, nn.Module]:
        """The bare model (for attacks and measurement), and the one whose backward pass averages gradients."""
        if self._sync_batchnorm:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return model, self._accelerator.prepare_model(model) if self.count > 1 else model

    def backward(self, loss: Tensor) -> None:
        """The backward pass."""
        self._accelerator.backward(loss)

    def mean(self, tensors: list[Tensor]) -> list[Tensor]:
        """Each tensor's mean over the processes, on all of them."""
        return tensors if self.count == 1 else [self._accelerator.reduce(tensor, "mean") for tensor in tensors]

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the processes, on all of them."""
        if self.count > 1:
            dist.all_reduce(tensor := tensor.clone())
        return tensor

    def sum_with_gradient(self, tensor: Tensor) -> Tensor:
        """The sum over the processes, on all of them; gradients pass through, those of all processes added."""
        if self.count == 1:
            return tensor
        from torch.distributed.nn.functional import all_reduce  # not there in every build of torch

        summed: Tensor = all_reduce(tensor)  # type: ignore[no-untyped-call]
        return summed

    def largest(self, value: int) -> int:
        """The largest of the processes' numbers, on all of them."""
        if self.count == 1:
            return value
        dist.all_reduce(tensor := torch.tensor(value, device=self.device), op=dist.ReduceOp.MAX)
        return int(tensor)

    def share_buffers(self, *models: nn.Module) -> None:
        """Give all processes the first one's buffers (BatchNorm's running statistics)."""
        if self.count > 1:
            for model in models:
                for buffer in model.buffers():
                    dist.broadcast(buffer, 0)

    def gather(self, value: Any) -> list[Any]:
        """A small object of every process, in the order of ranks, on all of them."""
        return [value] if self.count == 1 else gather_objects(value)

    def wait(self) -> None:
        """Wait for all processes."""
        self._accelerator.wait_for_everyone()

    def start_tracking(self, config: Mapping[str, Any]) -> None:
        """Begin a run with the trackers, if there are any; ``config`` is the recipe by dotted key."""
        if self._accelerator.log_with:
            known = {key: value if isinstance(value, int | float) else str(value) for key, value in config.items()}
            place = self._accelerator.logging_dir  # TensorBoard is there by itself
            options = {"wandb": {"dir": place}}
            self._accelerator.init_trackers("ccf_plugin", config=known, init_kwargs=options)

    def track(self, row: EpochRow, results: Mapping[str, CrossClassResult], *, pictures: bool) -> None:
        """Hand an epoch's figures to the trackers, if there are any.

        Args:
            results: of the weights that were measured, by the ending of their columns: each class's figures.
            pictures: whether those of C go too.
        """
        numbers = {key: value for key, value in row.as_dict().items() if isinstance(value, int | float)}
        for ending, result in results.items() if self._accelerator.trackers else ():
            numbers |= {name.replace("/", f"{ending}/", 1): value for name, value in class_figures(result).items()}
        self._accelerator.log(numbers, step=row.epoch)
        for tracker in self._accelerator.trackers if pictures and self.is_main else ():
            for ending, result in results.items():
                log_picture(tracker, f"C{ending}", result, row.epoch)

    def finish(self) -> None:
        """Close the trackers, if there are any."""
        for tracker in self._accelerator.trackers:
            tracker.finish()


def _accelerator(device: str, trackers: Sequence[str], folder: Path) -> Accelerator:
    """accelerate's part in a job; its environment decides nothing about how a run trains.

    ``accelerate launch`` exports the user's choices, and an accelerator takes each one that it is not given. The number
    of accumulation steps it takes even if one is given, unless a plugin gives it.
    """
    for name in _SPLITTING:
        if os.environ.get(variable := f"ACCELERATE_USE_{name}", "false").lower() == "true":
            raise InputError(
                f"expected processes that hold the whole model each, found {variable}=true; launch with torchrun, or "
                "with another configuration of accelerate"
            )
    try:
        return Accelerator(
            # It stays for the process's life; of a single process's device, which may change, it decides nothing.
            cpu=job_size() > 1 and resolve_device(device).type == "cpu",
            mixed_precision="no",  # ``Forward`` sees to precision
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            dynamo_backend="no",
            # Broadcasting buffers between the two forward passes of TRADES or MART would break autograd.
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
            log_with=list(trackers) or None,
            project_config=ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder / TRACKERS)),
        )
    except ValueError as error:
        raise InputError(
            f"expected accelerate without choices of its own in this process, found an Accelerator ({error}); train in "
            "a process without one"
        ) from error
