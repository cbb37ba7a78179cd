"""torchattacks by name: any of its attacks, built from a threat model, leaving the attacked model as it was.

``python:package.module:name`` is the user's own: a class with torchattacks' interface, or a function, that is called
once as ``name(model, **arguments)`` and gives a callable ``(images, labels) → adversarial images``. ``model`` maps
images (N, C, H, W) in [0, 1] to logits (N, K); ``train()`` and ``eval()`` on it do nothing, since the recipe's
``attack.batchnorm`` decides. The arguments are those of ``eps``, ``step_size`` (or ``alpha``), ``steps`` and ``norm``
that it has as parameters, from the threat model, and the recipe's ``attack.options``. Adversarial images have the
images' shape and lie in [0, 1]; whether they lie in the ball is the user's to see to.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ccf_plugin.engine.forward import Forward
from ccf_plugin.engine.gradients import GradientWatch
from ccf_plugin.engine.graphs import CUDA_GRAPHS, CudaGraphs, Replayed, graphs_are_wanted, model_state, plain_attributes
from ccf_plugin.engine.images import check_images
from ccf_plugin.engine.modes import evaluation_mode, preserved_modes, seeded, seeded_by
from ccf_plugin.engine.noise import PerImageNoise, image_keys
from ccf_plugin.errors import InputError, one_line
from ccf_plugin.threat import ThreatModel
from ccf_plugin.zoo.attack_names import FROM_THREAT, Mode, class_for, find_attack, norm_of
from ccf_plugin.zoo.containment import quiet
from ccf_plugin.zoo.python_code import failed, is_python, running_user_code

# They do the same at every call, on the device alone, except for random numbers that are drawn there.
_REPLAYABLE = {
    *("FGSM", "BIM", "RFGSM", "FFGSM", "MIFGSM", "NIFGSM", "PGD", "EOTPGD", "TPGD"),
    *("PGDL2", "TPGDL2", "CWPGD", "CWPGDL2"),
}
# Their examples do not depend, except by rounding, on the rest of a batch, where random numbers are each image's own.
# Others go on with the images that are not fooled yet, stop or split by the batch, or draw in another way.
_PER_IMAGE = _REPLAYABLE | {
    *("UPGD", "DIFGSM", "TIFGSM", "SINIFGSM", "VMIFGSM", "VNIFGSM", "PIFGSM", "PIFGSMPP", "Jitter", "GN", "VANILA"),
}
_WITHOUT_GRADIENTS = "probe it with {clean} or {attack} Square, which need none"
# torchattacks 3.5.1 convolves with kernels written for three channels.
_THREE_CHANNELS = {"TIFGSM", "PIFGSM", "PIFGSMPP"}


class Attack:
    """A callable: images float (N, C, H, W) in [0, 1] and labels int64 (N,) → adversarial images, detached.

    The result has the shape, dtype and device of ``images``. Whatever happens inside, afterwards every module of the
    model is in the mode it was in, every parameter requires gradients as it did, and no ``.grad`` has changed. It may
    be called under ``torch.no_grad`` and ``torch.inference_mode``. The first call checks that its images are in [0, 1];
    the first that asks for gradients raises NoGradientError where none reaches them, and warns where all are zero.

    On CUDA those attacks that only compute there can be replayed as one graph each (``engine.graphs``).

    Attributes:
        seed: with each image it gives that image's own noise; None: torch's stream does.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        threat: ThreatModel,
        attack: Any,
        *,
        mode: Mode,
        parameters: Mapping[str, inspect.Parameter],
        options: Mapping[str, Any] | None = None,
        fresh_noise: bool = False,
        seed: int | None = None,
        graphs: CudaGraphs | None = None,
    ) -> None:
        self.name = name
        self.threat = threat
        self.mode = mode
        self._model = model
        self._attack = attack
        self._options = dict(options or {})
        self._taken = {FROM_THREAT[key] for key in parameters if key in FROM_THREAT}
        self._seeds = "seed" in parameters
        self._draws_seed = self._seeds and fresh_noise
        self._checked = False
        self._gradients: GradientWatch | None = GradientWatch(model)  # until the first batch that asks for some
        self.seed = seed if name in _PER_IMAGE else None
        self._has_seed = seed is not None
        self._craft: Callable[..., Tensor] = self._craft_eagerly
        if name in _REPLAYABLE and (graphs is not None or graphs_are_wanted()):
            self._craft = Replayed(self._craft, f"attack {name}", self._state, graphs or CUDA_GRAPHS)

    @property
    def is_per_image(self) -> bool:
        """Whether an image's adversarial example does not depend, except by rounding, on its batch."""
        return self.seed is not None

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        is_first_call = not self._checked  # checked once per attack, so that no later step waits for the device
        if is_first_call:
            check_images(images, f"attack {self.name}")
        if self.name in _THREE_CHANNELS and images.shape[1] != 3:
            raise InputError(f"attack {self.name} works on images of 3 channels only, found {images.shape[1]}; use PGD")
        drawn = int(torch.randint(2**31, (), device="cpu")) if self._draws_seed else None
        with torch.inference_mode(False):
            # inference tensors cannot take part in autograd; and own code may write into what it gets
            if images.is_inference() or is_python(self.name):
                images, labels = images.clone(), labels.clone()
            if getattr(self._attack, "device", images.device) != images.device:
                self._attack.set_device(images.device)  # the library asks the model once, when it is built
            # PGDL2 and others take `.view(N, -1)` of images and gradients, which fails on channels_last ones.
            images = images.contiguous()
            keys = () if self.seed is None else (image_keys(images, self.seed),)
            watched = self._gradients or contextlib.nullcontext()
            with watched, seeded(self.seed, images.device), seeded_by(self._attack, drawn):
                adversarial = self._craft(images, labels, *keys)
        if self._gradients is not None:
            self._gradients.check(self.name, len(images), _WITHOUT_GRADIENTS)
            if self._gradients.asked:
                self._gradients = None
        if is_first_call and is_python(self.name):
            if not isinstance(adversarial, Tensor) or adversarial.shape != images.shape:
                shape, description = tuple(images.shape), getattr(adversarial, "shape", None)
                description = type(adversarial).__name__ if description is None else tuple(description)
                raise InputError(f"attack {self.name}: expected images of shape {shape} from it, found {description}")
            check_images(adversarial, f"what attack {self.name} returns")
        self._checked = True
        return adversarial.detach()

    def _craft_eagerly(self, images: Tensor, labels: Tensor, keys: Tensor | None = None) -> Tensor:
        """Adversarial images. ``keys``, int64 (N,), seed each image's own noise; None: torch's stream does."""
        with (
            torch.enable_grad(),
            self._preserved_rng(),
            self._only_input_gradients(),
            self._weights_cast_once(),
            self._noise(keys),
        ):
            try:
                adversarial: Tensor = self._attack(images, labels)
            except Exception as error:
                label = f"attack {self.name}"
                if self._gradients is not None:
                    self._gradients.check(self.name, len(images), _WITHOUT_GRADIENTS, error)
                if is_python(self.name) and not isinstance(error, InputError | torch.OutOfMemoryError):
                    raise failed(label, error) from error
                if isinstance(error, IndexError):  # the DLR loss of APGD and AutoAttack sorts four logits
                    raise InputError(f"{label} cannot attack this model: {one_line(error)}; use PGD") from error
                raise
        return adversarial

    def describe(self) -> dict[str, Any]:
        """What to record: attack, norm, eps, step_size, steps, the ``options`` that were given, if any, and with a seed
        whether noise is each image's own.

        What the attack does not take is None: ``steps`` and ``step_size`` of FGSM, ``eps`` of CW and DeepFool, whose
        perturbations the threat model does not bound.
        """
        taken = {name: value if name in self._taken else None for name, value in self.threat.as_dict().items()}
        norm = self.threat.norm if "norm" in self._taken or is_python(self.name) else norm_of(self.name)
        noise = {"per_image_noise": self.seed is not None} if self._has_seed else {}
        options = {"options": self._options} if self._options else {}
        return {"attack": self.name, **taken, "norm": norm, **options, **noise}

    def _state(self) -> Hashable:
        return model_state(self._model), plain_attributes(self._attack)

    @contextlib.contextmanager
    def _only_input_gradients(self) -> Iterator[None]:
        # Attacks need gradients of the images alone; without those of the weights a step costs a third less.
        trained = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        try:
            for parameter in trained:
                parameter.requires_grad_(False)
            with evaluation_mode(self._model) if self.mode == "eval" else preserved_modes(self._model):
                yield
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)

    @contextlib.contextmanager
    def _noise(self, keys: Tensor | None) -> Iterator[None]:
        if keys is None:
            yield
            return
        facade: _Facade = self._attack.model
        with PerImageNoise(keys) as facade.noise:
            try:
                yield
            finally:
                facade.noise = None

    def _weights_cast_once(self) -> contextlib.AbstractContextManager[None]:
        return self._model.weights_cast_once() if isinstance(self._model, Forward) else contextlib.nullcontext()

    def _preserved_rng(self) -> contextlib.AbstractContextManager[None]:
        # The attacks with a ``seed`` (APGD, FAB, Square, …) set torch's global seed at every call, which would give
        # each batch of a training run the same augmentation. The others draw from the caller's stream as it is.
        devices = [torch.cuda.current_device()] if self._seeds and torch.cuda.is_available() else []
        return torch.random.fork_rng(devices=devices, enabled=self._seeds)


class _Facade(nn.Module):
    """What torchattacks sees: the model, but deaf to ``train()`` and ``eval()``.

    torchattacks 3.5.1 calls ``model.eval()`` before an attack and ``model.train()`` on the whole model after it, which
    un-freezes BatchNorm layers that were frozen on purpose. It does so only where ``model.training``.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = False
        self.noise: PerImageNoise | None = None  # of the batch that is attacked; it is not the model's own

    def forward(self, images: Tensor) -> Tensor:
        if images.requires_grad:
            images.register_hook(Tensor.contiguous)  # type: ignore[no-untyped-call]  # see Attack.__call__
        with contextlib.nullcontext() if self.noise is None else self.noise.suspended():
            logits: Tensor = self.model(images)
        return logits

    def train(self, mode: bool = True) -> _Facade:
        return self

    def eval(self) -> _Facade:
        return self


def build_attack(
    name: str | None,
    model: nn.Module,
    threat: ThreatModel,
    *,
    mode: Mode = "eval",
    options: Mapping[str, Any] | None = None,
    num_classes: int | None = None,
    fresh_noise: bool = False,
    seed: int | None = None,
    graphs: CudaGraphs | None = None,
) -> Attack:
    """The torchattacks class ``name`` (any case) against ``model``, which maps [0, 1] images to logits.

    ``name=None`` is PGD, and in L2 ``PGD``, ``PGDRS`` and ``TPGD`` stand for their L2 twins. The class receives the
    threat model under its own parameter names (``max_epsilon`` for eps, ``alpha`` for the step size, …) and ``options``
    as they are; ``num_classes`` goes to those that ask for it (the targeted ones, whose default is 10). ``mode`` is
    what the model runs in during the attack: ``"eval"``, or ``"train"``, which leaves each module's own mode. Attacks
    that seed themselves (APGD, Square, …) use the same noise at every call, that of ``seed`` or 0, or with
    ``fresh_noise`` draw a seed from torch's stream for each. With ``seed`` the random numbers of most attacks
    (_PER_IMAGE) follow from it and the image, so that an image's adversarial example depends neither on its batch nor
    on the number of processes. Build once and
    call often: torchattacks searches every attribute that is set on an attack for further attacks. ``graphs`` is what
    replays it; None: CUDA's where they are wanted.

    Raises InputError for an unknown name or option, an attack of another norm, a mode or value that it refuses.
    """
    if mode not in ("eval", "train"):
        raise InputError(f"attack mode: expected 'eval' or 'train', found {mode!r}")
    name, chosen, parameters, values = find_attack(name, threat, options or {}, mode)
    fresh_noise = fresh_noise and values.get("seed") is None
    if "n_classes" in parameters and num_classes is not None:
        values.setdefault("n_classes", num_classes)
    fields = threat.as_dict()
    values |= {key: fields[field] for key, field in FROM_THREAT.items() if key in parameters}
    if "seed" in parameters and values.get("seed") is None:
        values["seed"] = seed or 0  # AutoAttack would otherwise seed by the clock, and APGD by 0 whatever was asked for
    try:
        # A model without parameters makes the library print that it found no device.
        with running_user_code(f"attack {name}"), quiet():
            attack = chosen(_Facade(model), **values)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"attack {name} refuses its parameters {values}: {one_line(error)}") from error
    if not callable(attack):
        raise InputError(f"attack {name}: expected a callable from it, found {type(attack).__name__}")
    return Attack(
        name,
        model,
        threat,
        attack,
        mode=mode,
        parameters=parameters,
        options=options,
        fresh_noise=fresh_noise,
        seed=seed,
        graphs=graphs,
    )


def is_replayed(name: str | None, threat: ThreatModel) -> bool:
    """Whether such an attack is one graph on CUDA, unless the model prevents it."""
    name = "PGD" if name is None else name
    return graphs_are_wanted() and not is_python(name) and class_for(name, threat)[0] in _REPLAYABLE


def check_attack(name: str | None, threat: ThreatModel, options: Mapping[str, Any], *, mode: Mode = "eval") -> None:
    """Raise InputError where ``build_attack`` would for any model. The user's own code is imported, not called."""
    if is_python(name):
        find_attack(name, threat, options, mode)
    else:
        build_attack(name, nn.Identity(), threat, options=options, mode=mode)
