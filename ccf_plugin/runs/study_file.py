"""study.json of a study's folder, as all that reads it takes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ccf_plugin.errors import InputError, one_line
from ccf_plugin.runs.layout import STUDY

FORMAT = 1


def read_study(folder: Path) -> dict[str, Any]:
    """The content of study.json: ``runs`` with name, label, status and folder, and ``claims``, perhaps none.

    Raises:
        InputError: there is none, or it is damaged, or of a newer format.
    """
    path = folder / STUDY
    try:
        study = json.loads(path.read_text("utf-8"))
        if study["format"] > FORMAT:
            raise InputError(f"{path}: written in format {study['format']}; update ccf_plugin")
        claims = study.get("claims", [])
        for claim in claims:
            if not all(isinstance(claim[key], str) for key in ("claim", "stated", "mark")):
                raise TypeError("a claim that is no text")
            if not isinstance(claim["stated_before"], bool):
                raise TypeError("stated_before")
        for run in study["runs"]:
            texts = [*(run[key] for key in ("name", "label", "status", "folder")), *run.get("teachers", ())]
            if not all(isinstance(text, str) for text in texts):
                raise TypeError("a run that is no text")
            if Path(run["folder"]).name != run["folder"]:
                raise ValueError(f"a run's folder {run['folder']!r}")
        return {**study, "claims": claims}
    except InputError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"expected a study in {path}, found none that can be read ({one_line(error, 120)}); "
            "remove it, and the claims count as stated now"
        ) from None
