"""A forward hook that stays with the module it was put on: copies and pickles of the module do not carry it."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle


def remove_hooks(hooks: list[weakref.ref[Hook]]) -> None:
    """Take these hooks off, those that are still there."""
    for reference in hooks:
        hook = reference()
        if hook is not None:
            hook.remove()


class Hook:
    """A hook that neither a copy nor a pickle of the host model takes along: there it becomes one that does nothing.

    What is left there is of the standard library alone, so that the pickle opens where this package is not installed.
    """

    only_reads = True  # a pass is the same with it and without: see `engine.graphs.model_state`

    def __init__(self, call: Callable[..., None], failed: Callable[[Exception], None]) -> None:
        self._call: Callable[..., None] | None = call
        self._failed = failed
        self._handle: RemovableHandle | None = None

    def on(self, register: Callable[..., RemovableHandle], **options: Any) -> Hook:
        """Register this hook; ``register`` is a module's method for it."""
        self._handle = register(self, **options)
        return self

    def move_to_end(self) -> None:
        """Let the module call this hook last, whatever was registered since; it is a forward hook."""
        hooks = None if self._handle is None else self._handle.hooks_dict_ref()
        if hooks is not None and self._handle is not None:
            hooks.move_to_end(self._handle.id)

    def remove(self) -> None:
        """Take the hook off; compiled code or a copied list of hooks that still holds it holds nothing of the probe."""
        self._call, self._failed = None, lambda _: None
        if self._handle is not None:
            self._handle.remove()

    def __call__(self, *args: Any) -> None:
        if self._call is None:
            return
        if torch.compiler.is_compiling():
            self._call(*args)
            return
        try:
            self._call(*args)
        except Exception as error:  # the probe never fails the host's pass; reading the pass reports it
            self._failed(error)

    def __deepcopy__(self, memo: Any) -> Any:
        return contextlib.nullcontext().__exit__

    def __reduce__(self) -> Any:
        return getattr, (contextlib.nullcontext(), "__exit__")


def remove_copied_hooks(model: nn.Module) -> None:
    """Take off what copies and pickles of a probed model carry in place of its hooks."""
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, hook in hooks.items() if _is_copied(hook)]:
                del hooks[key]
                module._forward_hooks_with_kwargs.pop(key, None)
                module._forward_hooks_always_called.pop(key, None)


def _is_copied(hook: object) -> bool:
    owner = getattr(hook, "__self__", None)
    return isinstance(owner, contextlib.nullcontext) and hook == owner.__exit__
