"""Which layers of a model have a hook: all that may be its head, or those that matter once it is known."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from ccf_plugin.errors import InputError, did_you_mean
from ccf_plugin.probe.calls import PassRecord, is_matrix
from ccf_plugin.probe.hook import Hook, remove_copied_hooks
from ccf_plugin.probe.layers import candidates, may_cover, parametrizations, tensors_of


class WatchedLayers:
    """The watched layers of ``model``.

    Args:
        model: the root.
        name: watch this layer alone; None: every layer that may be a head.
        hook: puts a function on a module, by the module's method for it.
        note: told of each run of a layer: name, module, arguments, what it made, its parametrised weights in this pass.
        needs_matrix: whether the layer called ``name`` must have a matrix.

    Raises:
        InputError: ``name`` is that of no such layer.
    """

    def __init__(
        self,
        model: nn.Module,
        name: str | None,
        hook: Callable[..., Hook],
        note: Callable[[str, nn.Module, Sequence[Any], Any, dict[str, Tensor]], None],
        *,
        needs_matrix: bool,
    ) -> None:
        self._model, self._name, self._hook, self._note = model, name, hook, note
        self._considered: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        watched = self._unconsidered()
        if name is not None:
            modules = watched if needs_matrix else dict(model.named_modules())
            if name not in modules:
                kind = "a layer with a matrix (as nn.Linear or a 1×1 convolution has)" if needs_matrix else "a layer"
                raise InputError(
                    f"expected head to name {kind}, found {name!r}"
                    f"{did_you_mean(name, modules) or '; see model.named_modules()'}"
                )
            watched = {name: modules[name]}
        remove_copied_hooks(model)
        self._layers = {key: (module, list(self._watch(key, module))) for key, module in watched.items()}

    def narrow(
        self, record: PassRecord, names: Iterable[str], sizes: set[int], features: int | None, bystander: str | None
    ) -> set[str]:
        """Watch only these layers, those with a matrix of such a size, and what they read; the names of all of them.

        Args:
            record: the pass in which the head was found.
            names: of layers.
            sizes: of matrices.
            features: n.
            bystander: a layer that keeps its hook beside these.
        """
        watched = {*names, *(name for name, (module, _) in self._layers.items() if _has_matrix(module, sizes))}
        # low-rank branches that have not run yet: what a layer of K outputs and other than n features may read from
        ranks = {size for name in watched if name in self._layers for size in _widths(self._layers[name][0])} - sizes
        watched |= {name for name, (module, _) in self._layers.items() if _has_matrix(module, ranks - {features})}
        # Nothing is noted of those that cover no map; without their hooks compiled code would be compiled anew.
        watched |= {name for name, (module, _) in self._layers.items() if may_cover(module)}
        for call in reversed(record.calls):
            if any(sizes & set(matrix.shape) for _, matrix in call.matrices()):
                watched.add(call.name)
            if call.name in watched and (before := record.by_serial(call.reads)) is not None:
                watched.add(before.name)
        self.unwatch_all_but(watched if bystander is None else {*watched, bystander})
        return watched

    def widen(self) -> list[str]:
        """Watch every layer again that may be a head; the names of those that were built since the last look."""
        if self._name is not None:
            return []
        built = list(self._unconsidered())
        present = dict(candidates(self._model))
        self.unwatch_all_but({name for name in self._layers if self._is_watched_unchanged(name, present.get(name))})
        for name, module in present.items():
            if name not in self._layers:
                self._layers[name] = module, list(self._watch(name, module))
        return built

    def have_moved(self, names: Iterable[str]) -> bool:
        """Whether other modules than the watched ones have these names now: a layer was wrapped or replaced."""
        modules = ((name, self._layers[name][0]) for name in names if name in self._layers)
        return any(_submodule(self._model, name) is not module for name, module in modules)

    def have_grown(self) -> bool:
        """Whether the model has layers that may be a head and were not there at the last look."""
        if self._name is not None:
            return False
        return any(module not in self._considered for _, module in candidates(self._model))

    def unwatch_all_but(self, names: set[str]) -> None:
        """Take the hooks off the other layers."""
        for name in set(self._layers) - names:
            for hook in self._layers.pop(name)[1]:
                hook.remove()

    def _is_watched_unchanged(self, name: str, module: nn.Module | None) -> bool:
        watched, hooks = self._layers[name]
        return watched is module and len(hooks) == 1 + len(parametrizations(watched))

    def _unconsidered(self) -> dict[str, nn.Module]:
        """The layers that may be a head and were not there at the last look, by name."""
        layers = {}
        for name, module in candidates(self._model):
            if module not in self._considered:
                self._considered.add(module)
                layers[name] = module
        return layers

    def _watch(self, name: str, module: nn.Module) -> Iterator[Hook]:
        computed: dict[str, Tensor] = {}

        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            self._note(name, module, (*args, *kwargs.values()), output, computed)

        # First among the hooks: those of sharded models free the weights when the layer has run.
        yield self._hook(note, module.register_forward_hook, with_kwargs=True, prepend=True)
        # Reading a parametrised weight computes it anew (spectral_norm even takes a power-iteration step), so the
        # value that the pass itself computed is noted.
        for key, parametrization in parametrizations(module).items():

            def note_weight(_: nn.Module, args: Any, output: Tensor, key: str = key) -> None:
                computed[key] = output.detach()

            yield self._hook(note_weight, parametrization.register_forward_hook)


def _submodule(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def _has_matrix(module: nn.Module, sizes: set[int]) -> bool:
    """Whether a layer, which may not have run yet, has a matrix with such a size."""
    if isinstance(module, nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params():
        return True
    return any(is_matrix(tensor) and bool(sizes & set(tensor.shape)) for tensor in tensors_of(module).values())


def _widths(module: nn.Module) -> set[int]:
    """How many features a layer's matrices may read."""
    return {size for tensor in tensors_of(module).values() if is_matrix(tensor) for size in tensor.shape[:2]}
