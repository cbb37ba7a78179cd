"""RobustBench's AutoAttack (Croce & Hein 2020, standard version) on any batch of images."""

from __future__ import annotations

import importlib
import inspect
import logging
from typing import Any, Literal, cast

from torch import Tensor, nn

from ccf_plugin.engine.forward import Forward
from ccf_plugin.engine.modes import device_of
from ccf_plugin.errors import InputError
from ccf_plugin.threat import ThreatModel
from ccf_plugin.zoo.attacks import Attack

_FEWEST_CLASSES = 4  # the targeted DLR loss sorts four logits
_TARGETS = 9  # AutoAttack's standard; fewer where there are fewer other classes


class AutoAttack:
    """images (N, C, H, W) in [0, 1], labels (N,) → adversarial images: APGD-CE, targeted APGD-DLR and FAB, Square.

    RobustBench's ``benchmark`` runs this attack on its own data sets alone; so the attack itself is called here.

    Args:
        model: images → logits.
        norm: "Linf" or "L2".
        eps: the radius in [0, 1] pixel units.
        n_classes: K.
        seed: of the random starts.
    """

    def __init__(self, model: nn.Module, *, norm: Literal["Linf", "L2"], eps: float, n_classes: int, seed: int) -> None:
        # robustbench requires pyautoattack, which installs this module; import_robustbench says more
        library = importlib.import_module("pyautoattack")
        self.device = device_of(model)
        self.notes: set[str] = set()
        self._attack: Any = library.AutoAttack(model, norm=norm, eps=eps, seed=seed, device=self.device)
        for part in (self._attack.apgd_targeted, self._attack.fab):
            part.n_target_classes = min(_TARGETS, n_classes - 1)

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        # Its logger warns of defences that it may not be able to judge: randomised, with vanishing gradients, …
        logger: logging.Logger = self._attack.logger
        before, handler = logger.propagate, _Notes(self.notes)
        logger.addHandler(handler)
        logger.propagate = False
        try:
            adversarial, _ = self._attack.run_standard_evaluation(images, labels, batch_size=len(images))
        finally:
            logger.removeHandler(handler)
            logger.propagate = before
        return cast(Tensor, adversarial)


class _Notes(logging.Handler):
    def __init__(self, notes: set[str]) -> None:
        super().__init__(logging.WARNING)
        self._notes = notes

    def emit(self, record: logging.LogRecord) -> None:
        self._notes.add(record.getMessage().split(" See flags_doc")[0])


def build_autoattack(model: nn.Module, threat: ThreatModel, *, num_classes: int, seed: int) -> tuple[Attack, set[str]]:
    """AutoAttack against a model, leaving it as it was, and the set into which its warnings go as it runs.

    Of the threat model it takes norm and eps; its steps are its own. Raises InputError for fewer than 4 classes.
    """
    if num_classes < _FEWEST_CLASSES:
        raise InputError(f"AutoAttack: expected {_FEWEST_CLASSES} classes or more, found {num_classes}; use PGD alone")
    forward = model if isinstance(model, Forward) else Forward(model, classes=num_classes)
    attack = AutoAttack(forward, norm=threat.norm, eps=threat.eps, n_classes=num_classes, seed=seed)
    parameters = inspect.signature(AutoAttack).parameters
    return Attack("AutoAttack", forward, threat, attack, parameters=parameters, mode="eval"), attack.notes
