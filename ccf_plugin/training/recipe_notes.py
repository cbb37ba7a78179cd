"""What of a valid recipe does nothing in its run, which the user is told at the start."""

from __future__ import annotations

from pydantic import BaseModel

from ccf_plugin.training.recipe import Recipe


def unreached(recipe: Recipe) -> list[str]:
    """Settings at epochs that the run will not get to, such as "optim.decay_epochs 100"; they do nothing in it."""
    optim, last, beyond = recipe.optim, recipe.optim.epochs, recipe.optim.epochs + 1
    # Each setting, its epochs, and the first of all epochs that is too late: what follows an epoch is, at the last.
    settings = [
        ("optim.decay_epochs", optim.decay_epochs if optim.schedule == "multistep" else None, last),
        ("average.start_epoch", None if recipe.average is None else [recipe.average.start_epoch], last),
        ("awp.start_epoch", None if recipe.awp is None else [recipe.awp.start_epoch], last),
        ("optim.warmup_epochs", [optim.warmup_epochs], beyond),
        ("attack.warmup_epochs", [recipe.attack.warmup_epochs], beyond),
        *((f"distill.{place}.ramp", part.ramp, beyond) for place, part in enumerate(recipe.distill)),
        ("ensembling.ramp", None if recipe.ensembling is None else recipe.ensembling.ramp, beyond),
        ("crossclass.ramp", None if recipe.crossclass is None else recipe.crossclass.ramp, beyond),
        ("stop.patience", None if recipe.stop is None else [recipe.stop.patience], beyond),
    ]
    late = {name: [epoch for epoch in epochs or () if epoch >= first] for name, epochs, first in settings}
    return [f"{name} {' and '.join(map(str, epochs))}" for name, epochs in late.items() if epochs]


def idle(recipe: Recipe) -> list[str]:
    """Settings other than their defaults that do nothing beside another one, such as "data.mix_alpha"."""
    data, optim, average, attack = recipe.data, recipe.optim, recipe.average, recipe.attack
    settings: list[tuple[str, BaseModel | None, tuple[str, ...], bool]] = [
        ("data", data, ("crop_padding", "crop_border"), data.augmentation == "none"),
        ("data", data, ("mix_alpha",), data.mix == "none"),
        ("optim", optim, ("decay_epochs", "decay_rate"), optim.schedule != "multistep"),
        ("average", average, ("decay",), average is not None and average.kind == "swa"),
        ("attack", attack, ("steps", "options", "warmup_epochs"), not recipe.objective.is_adversarial),
    ]
    return [
        f"{name}.{key}"
        for name, section, keys, are_idle in settings
        for key in keys
        if are_idle and getattr(section, key) != type(section).model_fields[key].default  # type: ignore[union-attr]
    ]
