"""A study as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from ccf_plugin.drawing import figure_bytes
from ccf_plugin.files import csv_bytes, json_bytes
from ccf_plugin.theory.figure import draw
from ccf_plugin.theory.study import Study, StudyRow


def study_bytes(
    study: Study, pictures: Sequence[str] = (".png",), described: Mapping[str, Any] | None = None
) -> dict[str, bytes]:
    """By ending: .csv (the rows), .json (everything, and what is ``described`` beside), and the pictures."""
    columns = [field.name for field in fields(StudyRow)]
    figure = draw(study)
    return {
        ".csv": csv_bytes(columns, map(asdict, study.rows), digits=6),
        ".json": json_bytes({**study.to_json(), **(described or {})}),
        **{ending: figure_bytes(figure, ending) for ending in pictures},
    }
