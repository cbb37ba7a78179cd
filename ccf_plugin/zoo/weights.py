"""Weights of anyone's code for a given network, found in a file by structure.

The mapping is looked for whose tensors fit the network, after one prefix is taken off the file's keys, or off the
network's. Nothing is guessed: what was taken, and what was left, is said in a warning of one line, and where several
sets of weights fit the caller chooses.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ccf_plugin.errors import Fault, InputError, did_you_mean, some_of
from ccf_plugin.zoo.checkpoints import apply_state, architecture_mismatch, no_state_dict
from ccf_plugin.zoo.normalizations import Normalization
from ccf_plugin.zoo.normalize import with_normalization
from ccf_plugin.zoo.sources.source import CustomWeights
from ccf_plugin.zoo.weight_files import StateDicts, read_content, state_dicts

# How layers that normalise images name their mean and deviation.
_NORMALIZERS = (("mean", "std"), ("new_mean", "new_std"), ("mu", "sigma"), ("mean", "sigma"), ("mu", "std"))
_MEANS = {mean for mean, _ in _NORMALIZERS}
_CONSTANTS = {name for pair in _NORMALIZERS for name in pair}
_COUNTER = "num_batches_tracked"  # BatchNorm's, which torch before 0.4.1 does not save
_TOP = "."  # how the outermost mapping of a file is called, where it has to be chosen


class Restored(NamedTuple):
    """A network with its weights, in float32 and eval mode.

    ``is_normalized`` False: the weights are the user's, and nothing says how their images were normalised.
    """

    model: nn.Module
    is_normalized: bool


def restored(
    build: Callable[[int | None], nn.Module], custom: CustomWeights, *, usual: Normalization | None = None
) -> Restored:
    """The network that ``build`` makes for a number of classes (None: its default), with the user's weights.

    ``usual`` is the normalisation where neither the user, the file nor the network has one. Raises InputError as
    ``load_weights`` does, and for a mean and std that do not fit each other.
    """
    model, normalization = build(custom.num_classes), None
    if custom.path is not None:
        tensors = _read(custom.path)
        if custom.num_classes is None and (classes := _classes_in(model, tensors)) is not None:
            model = build(classes)
        normalization = _load(model, tensors, custom)
    for name, value in model.named_buffers():
        if name in _constants(model) and name.rpartition(".")[2] in _MEANS and value.numel() and value.max() > 1:
            warnings.warn(
                f"the network's own {name} is up to {value.max():.4g}, as of images in 0..255, and images here are in "
                "[0, 1]; unless its code multiplies them by 255, give it one that does",
                stacklevel=2,
            )
    mean, std = (custom.mean, custom.std) if normalization is None else normalization
    is_normalized = mean is not None or std is not None or bool(_constants(model))
    is_normalized = is_normalized or custom.path is None
    if not is_normalized and usual is not None:
        mean, std = usual
    channels = len(mean or std or ())
    return Restored(with_normalization(model, mean, std, channels=channels).float().eval(), is_normalized)


def load_weights(model: nn.Module, path: Path, *, key: str | None = None) -> Normalization | None:
    """Load the weights of ``model`` from a file of any code's, and say in a warning what of the file was taken.

    Args:
        key: which of several state dicts that fit: the keys that lead to it, joined by dots.

    Returns:
        The normalisation that stands before the network in the file and not in ``model``; None where there is none.

    Raises:
        InputError: on one line, a file that is not right (``weight_files.read_content``), holds no weights or those of
            another architecture (``checkpoints.apply_state``), or several without ``key``.
    """
    return _load(model, _read(path), CustomWeights(path, key))


def _read(path: Path) -> StateDicts:
    content = read_content(path)
    tensors = state_dicts(content)
    if not tensors:
        raise no_state_dict(path, content)
    return tensors


def _load(model: nn.Module, tensors: StateDicts, custom: CustomWeights) -> Normalization | None:
    """The file's normalisation, where neither the network nor the user has one."""
    matches = list(_matches(model, tensors))
    fits = [match for match in matches if not match.missing and not match.reshaped]
    if not fits:
        apply_state(model, _nearest(matches, tensors), source=str(custom.path))  # says what differs
    fit = _choose(_with_rest(fits, tensors), custom)
    apply_state(model, fit.state, source=str(custom.path))
    is_used = fit.normalization is not None and not fit.kept and custom.mean is None and custom.std is None
    notes = [f"`{'.'.join(fit.place)}` of the file"] if fit.place else []
    notes += [f"prefix `{fit.prefix}` removed"] if fit.prefix else []
    notes += [f"prefix `{fit.added}` added"] if fit.added else []
    notes += [f"the network's own {some_of(fit.kept)} kept"] if fit.kept else []
    if fit.normalization is not None:
        mean, std = (", ".join(f"{value:.4g}" for value in values) for values in fit.normalization)
        notes.append(f"its normalisation by mean {mean} and std {std} {'applied' if is_used else 'left out'}")
    notes += [f"{len(fit.rest)} tensors left out ({some_of(fit.rest)})"] if fit.rest else []
    if custom.key is None and (others := _other_values(model, tensors, fits)):
        notes.append(
            f"other values of its parameters, without buffers, left out (`{'`, `'.join(others)}`: an average?)"
        )
    if notes:
        warnings.warn(f"{custom.path}: {', '.join(notes)}", stacklevel=2)
    return fit.normalization if is_used else None


@dataclass(frozen=True)
class _Match:
    """One mapping of the file held against the network, with a prefix of its keys and one (``added``) of the network's.

    ``state`` has the network's keys; ``used`` are the mapping's. ``missing`` and ``reshaped`` are keys of the network
    without a tensor, and with one of another shape; ``kept`` its constants that the file lacks. ``rest`` is what else
    the mapping holds, but for counters and ``normalization``.
    """

    place: tuple[str, ...]
    prefix: str
    added: str
    state: dict[str, Tensor]
    used: frozenset[str]
    missing: tuple[str, ...]
    reshaped: tuple[str, ...]
    kept: tuple[str, ...]
    rest: tuple[str, ...] = ()
    normalization: Normalization | None = None

    @property
    def label(self) -> str:
        """What the user calls it by."""
        return ".".join((*self.place, self.prefix.rstrip("."))).strip(".") or _TOP


def _choose(fits: Sequence[_Match], custom: CustomWeights) -> _Match:
    """The fit that is meant. Raises InputError where that is not one, or where it is not all of its mapping."""
    if custom.key is None:
        fits = [fit for fit in fits if not fit.rest] or fits
    else:
        named = [fit for fit in fits if custom.key == fit.label]
        named = named or [fit for fit in fits if f"{fit.label}.".startswith(f"{custom.key}.")]
        if not named:
            labels = list(dict.fromkeys(fit.label for fit in fits))
            near = did_you_mean(custom.key, labels)
            raise InputError(Fault("checkpoint_key", f"one that fits ({', '.join(labels)})", f"{custom.key!r}{near}"))
        fits = named
    fits = _different(fits)
    if len(fits) > 1:
        labels = [fit.label for fit in fits]
        raise InputError(
            Fault(
                "checkpoint_key",
                f"one of the state dicts that fit in {custom.path}, {' or '.join(labels)}",
                "none" if custom.key is None else repr(custom.key),
                "choose with {checkpoint_key}",
            )
        )
    (fit,) = fits
    is_whole = not any(name.startswith(fit.prefix) for name in fit.rest)
    if fit.rest and (custom.key is None or not is_whole):
        message = architecture_mismatch(str(custom.path), {"unexpected": fit.rest})
        raise InputError(message + (f", or take {fit.label} alone as checkpoint_key" if is_whole else ""))
    return fit


def _matches(model: nn.Module, tensors: StateDicts) -> Iterator[_Match]:
    """Each mapping with the prefixes that are worth a look; as little of the network's keys taken off as can be."""
    network, constants = model.state_dict(), _constants(model)
    has_fit = False
    for added in _prefixes(network.keys() - constants):
        names = {key.removeprefix(added) for key in network if key.startswith(added)}
        needed = sum(key.startswith(added) and not key.endswith(_COUNTER) for key in network.keys() - constants)
        for place, mapping in tensors.items():
            for rank, (prefix, count) in enumerate(_prefixes_in(mapping, names).most_common()):
                if count >= needed or rank < 3:
                    match = _match(network, constants, added, place, mapping, prefix)
                    has_fit = has_fit or not (match.missing or match.reshaped)
                    yield match
        if has_fit:
            return


def _prefixes(names: Collection[str]) -> list[str]:
    """The prefixes, of whole names, that all keys share; "" first."""
    keys = [key.split(".")[:-1] for key in names]
    shared = min(keys, key=len, default=[])
    length = next((place for place, name in enumerate(shared) if any(key[place] != name for key in keys)), len(shared))
    return ["".join(f"{name}." for name in shared[:count]) for count in range(length + 1)]


def _prefixes_in(mapping: Collection[str], names: Collection[str]) -> Counter[str]:
    """How many of ``names`` stand in the mapping behind each prefix."""
    counts: Counter[str] = Counter()
    for key in mapping:
        parts = key.split(".", 16)
        for place in range(len(parts)):
            if ".".join(parts[place:]) in names:
                counts["".join(f"{part}." for part in parts[:place])] += 1
    return counts


def _match(
    network: Mapping[str, Tensor],
    constants: Collection[str],
    added: str,
    place: tuple[str, ...],
    mapping: Mapping[str, Tensor],
    prefix: str,
) -> _Match:
    state: dict[str, Tensor] = {}
    used, missing, reshaped, kept = set(), [], [], []
    for key, expected in network.items():
        name = prefix + key.removeprefix(added)
        value = mapping.get(name) if key.startswith(added) else None
        if value is None:
            if key not in constants and not key.endswith(_COUNTER):
                missing.append(key)
                continue
            kept += [key] if key in constants else []
            value = expected
        else:
            used.add(name)
            if key in constants and _is_plain(value) and value.numel() == expected.numel():
                value = value.reshape(expected.shape)
            if value.shape != expected.shape:
                reshaped.append(key)
        state[key] = value
    return _Match(place, prefix, added, state, frozenset(used), tuple(missing), tuple(reshaped), tuple(kept))


def _with_rest(fits: Sequence[_Match], tensors: StateDicts) -> list[_Match]:
    """The fits with what remains of their mappings; what another fit uses (a copy, an average) does not."""
    whole = []
    for fit in fits:
        mapping = tensors[fit.place]
        used = frozenset().union(*(other.used for other in fits if other.place == fit.place))
        rest = [key for key, value in mapping.items() if key not in used and not _is_count(value)]
        normalization, constants = _normalization_in(mapping, rest)
        whole.append(replace(fit, rest=tuple(key for key in rest if key not in constants), normalization=normalization))
    return whole


def _normalization_in(mapping: Mapping[str, Tensor], rest: Sequence[str]) -> tuple[Normalization | None, set[str]]:
    """The normalisation among what remains of a mapping, and its keys; none where two differ."""
    layers: list[Normalization] = []
    constants: set[str] = set()
    for key in rest:
        module, dot, last = key.rpartition(".")
        for other in (f"{module}{dot}{std}" for mean, std in _NORMALIZERS if mean == last):
            if other in rest and _are_constants(mapping[key], mapping[other]):
                layers.append(_of_unit_images(*(mapping[name].flatten().tolist() for name in (key, other))))
                constants |= {key, other}
    if not layers or any(layer != layers[0] for layer in layers):
        return None, set()
    # MAIR's RobModel keeps them beside n_classes without using them; its add_normalize makes a layer of them.
    is_noted_only = all(f"{key.rpartition('.')[0]}.n_classes".lstrip(".") in mapping for key in constants)
    is_identity = not any(layers[0].mean) and all(value == 1 for value in layers[0].std)
    return None if is_noted_only or is_identity else layers[0], constants


def _of_unit_images(mean: list[float], std: list[float]) -> Normalization:
    """A normalisation of images in [0, 1]; constants above 1 are those of images in 0..255."""
    scale = 255 if max(mean, default=0) > 1 else 1
    return Normalization([value / scale for value in mean], [value / scale for value in std])


def _are_constants(mean: Tensor, std: Tensor) -> bool:
    return (
        mean.numel() == std.numel()
        and all(_is_plain(value) and value.is_floating_point() for value in (mean, std))
        and bool((std > 0).all())
    )


def _different(fits: Sequence[_Match]) -> list[_Match]:
    """Without those whose weights are another's, such as an average that has not begun; the shortest label remains."""
    distinct: list[_Match] = []
    for fit in sorted(fits, key=lambda fit: len(fit.label)):
        if not any(_are_equal(fit.state, other.state) for other in distinct):
            distinct.append(fit)
    return distinct


def _are_equal(state: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return all(
        _is_plain(value) and _is_plain(other[key]) and torch.equal(value, other[key]) for key, value in state.items()
    )


def _other_values(model: nn.Module, tensors: StateDicts, fits: Sequence[_Match]) -> list[str]:
    """Where the file has each parameter of the network in other mappings than the fits, by name or as a list in order.

    So averages are kept that leave BatchNorm's statistics out; they do not fit.
    """
    shapes = {key: value.shape for key, value in model.named_parameters()}
    places = []
    for place, mapping in tensors.items():
        listed = list(mapping) == [str(number) for number in range(len(mapping))]
        found = dict(zip(shapes, mapping.values(), strict=False)) if listed else mapping
        has_all = all(key in found and found[key].shape == shape for key, shape in shapes.items())
        if shapes and has_all and not any(fit.place == place for fit in fits):
            places.append(".".join(place))
    return places


def _nearest(matches: Sequence[_Match], tensors: StateDicts) -> dict[str, Tensor]:
    """The mapping that is nearest to the network, with the network's keys; the largest where none is near."""
    if not matches:
        return max(tensors.values(), key=len)
    match = max(matches, key=lambda match: len(match.used) - len(match.reshaped))
    return {
        match.added + key.removeprefix(match.prefix): value
        for key, value in tensors[match.place].items()
        if key.startswith(match.prefix)
    }


def _classes_in(model: nn.Module, tensors: StateDicts) -> int | None:
    """The file's number of classes, where it alone keeps its weights from fitting the network."""
    network = model.state_dict()
    for match in _matches(model, tensors):
        pairs = [(network[key].shape, match.state[key].shape) for key in match.reshaped]
        counts = {(expected[:1], found[:1]) for expected, found in pairs}
        if not match.missing and len(counts) == 1 and all(a[1:] == b[1:] and a and b for a, b in pairs):
            ((_, (count,)),) = counts
            return count
    return None


def _constants(model: nn.Module) -> frozenset[str]:
    """The buffers of a network that are a normalisation's by their names."""
    names = [name for name, _ in model.named_buffers()]
    return frozenset(name for name in names if name.rpartition(".")[2] in _CONSTANTS)


def _is_plain(value: Tensor) -> bool:
    return value.layout == torch.strided and not value.is_meta


def _is_count(value: Tensor) -> bool:
    """Such as n_averaged, n_classes or num_batches_tracked: one whole number."""
    return value.numel() == 1 and not value.is_floating_point() and not value.is_complex()
