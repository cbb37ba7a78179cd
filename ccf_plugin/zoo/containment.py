"""What other libraries may not do while the zoo calls them: print, or unpickle a file."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterator

_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_FORBID = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Swallow what is printed, or logged below an error, inside (gdown, torch.hub, huggingface_hub, torchattacks)."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def weights_only() -> Iterator[None]:
    """Make every ``torch.load`` inside refuse pickled objects, whatever its caller or the environment asks for.

    robustbench leaves ``weights_only`` unset, which an environment variable can turn off, and parts of timm pass False.
    torch reads the variables at each call.
    """
    before = {name: os.environ.get(name) for name in (_FORCE, _FORBID)}
    os.environ[_FORCE] = "1"
    os.environ.pop(_FORBID, None)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
