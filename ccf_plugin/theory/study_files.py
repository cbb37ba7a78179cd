"""A study as files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ccf_plugin.files import csv_bytes, json_bytes, made_folder, write_together
from ccf_plugin.theory.figure import draw
from ccf_plugin.theory.study import Study, StudyRow


def save_study(study: Study, stem: Path, described: Mapping[str, Any] | None = None) -> list[Path]:
    """Write ``stem``.csv (the rows), .json (everything, and what is ``described`` beside) and .png (the figure)."""
    columns = [field.name for field in fields(StudyRow)]
    contents = {
        ".csv": csv_bytes(columns, map(asdict, study.rows), digits=6),
        ".json": json_bytes({**study.to_json(), **(described or {})}),
        ".png": draw(study),
    }
    files = {stem.with_name(stem.name + suffix): content for suffix, content in contents.items()}
    with made_folder(stem.parent):
        write_together(files)
    return list(files)
