"""What a module is to the probe: whether it may be a head, its tensors, and the model inside its wrappers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ccf_plugin.errors import InputError
from ccf_plugin.probe.calls import is_matrix

NORMS = (nn.BatchNorm1d, nn.LazyBatchNorm1d, nn.SyncBatchNorm)


def candidates(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers that may be a head, by name.

    Two kinds are left out: torch's transformer layers, which are no heads and would leave their fused kernels if they
    or their parts had a hook; and TorchScript modules, which take no hooks.
    """
    fused = tuple(
        f"{name}." if name else ""
        for name, module in model.named_modules()
        if isinstance(module, (nn.TransformerEncoderLayer, nn.MultiheadAttention))
    )
    for name, module in model.named_modules():
        if not f"{name}.".startswith(fused) and not isinstance(module, torch.jit.ScriptModule) and may_be_head(module):
            yield name, module


def is_whole(model: nn.Module) -> bool:
    """Whether a model has all its modules; while it is copied or unpickled it has not."""
    try:
        return all("_modules" in module.__dict__ for module in model.modules())
    except AttributeError:
        return False


def is_sharded(model: nn.Module) -> bool:
    """Whether weights lie in shards that are put together while their layers run."""
    return any(
        type(module).__name__.startswith(("FSDP", "FullyShardedDataParallel")) for module in model.modules()
    ) or any(hasattr(parameter, "full_tensor") for parameter in model.parameters())


def kind_of(module: nn.Module) -> str:
    """The layer's type; torch's parametrisations and sharding rename it."""
    return type(module).__name__.removeprefix("Parametrized").removeprefix("FSDP")


def may_be_head(module: nn.Module) -> bool:
    """Whether a layer has a matrix, or may have one by the end of its first pass; or is a BatchNorm before one."""
    # a linear layer's weight may lie in pieces between passes (FSDP), none of them a matrix
    if isinstance(module, (nn.Linear, nn.modules.lazy.LazyModuleMixin, *NORMS)) or parametrizations(module):
        return True
    if may_cover(module):
        return True
    return any(is_matrix(tensor) for tensor in tensors_of(module).values())


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """The layer's own tensors by name: parameters, buffers, and the plain attributes that old weight norms set."""
    plain = {name: value for name, value in vars(module).items() if isinstance(value, Tensor)}
    owned = {**module._buffers, **module._parameters}
    return plain | {name: value for name, value in owned.items() if value is not None}


def may_cover(module: nn.Module) -> bool:
    """Whether a convolution may be a linear layer on a whole map: where its kernel is as large as that."""
    if not isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) or module.groups > 1 or any(module.padding):
        return False
    return max(module.kernel_size) > 1


def parametrizations(module: nn.Module) -> dict[str, nn.Module]:
    """The parametrisations that compute the layer's tensors, by the tensor's name."""
    return dict(module.parametrizations.items()) if parametrize.is_parametrized(module) else {}  # type: ignore


def batchnorm_slope(module: nn.Module, inputs: Tensor) -> Tensor | None:
    """The factor of each feature in a BatchNorm on (N, n), of this pass; None where there is none for all samples."""
    if not isinstance(module, NORMS) or inputs.ndim != 2:
        return None
    with torch.no_grad():
        if module.training or module.running_var is None:
            if isinstance(module, nn.SyncBatchNorm):  # its statistics are those of all processes
                return None
            variance = inputs.detach().var(0, correction=0)
        else:
            variance = module.running_var
        slope = torch.rsqrt(variance + module.eps)
        return slope if module.weight is None else slope * module.weight.detach()


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside torch.compile's and DistributedDataParallel's wrappers: passes through either are its passes.

    Raises:
        InputError: what is no module, or a kind of module whose passes hooks cannot follow.
    """
    if not isinstance(model, nn.Module):
        raise InputError(
            f"expected an nn.Module whose passes hooks can follow, found {_kind(model)}; give the module that it calls"
        )
    if isinstance(model, nn.DataParallel):
        raise InputError(
            "expected one module per process, found nn.DataParallel, whose replicas hooks cannot follow; "
            "use one process per GPU (DistributedDataParallel), or probe model.module"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError(
            "expected an eager nn.Module, found a TorchScript module, which shows nothing to hooks; "
            "probe the module that it was made from"
        )
    split = [name for name, m in model.named_modules() if isinstance(m, nn.DataParallel) and len(m.device_ids) > 1]
    if split:
        raise InputError(
            f"expected a model that runs whole in one process, found nn.DataParallel at {split[0]!r}; "
            "use one process per GPU (DistributedDataParallel)"
        )
    inner = getattr(model, "_orig_mod", None)
    if inner is None and isinstance(model, nn.parallel.DistributedDataParallel):
        inner = model.module
    return unwrapped(inner) if isinstance(inner, nn.Module) else model


def _kind(value: object) -> str:
    return (
        f"the function {value.__name__!r}" if callable(value) and hasattr(value, "__name__") else type(value).__name__
    )
