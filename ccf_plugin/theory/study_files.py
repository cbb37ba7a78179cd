"""A study as files."""

from __future__ import annotations

import csv
import json
from dataclasses import astuple, fields
from io import StringIO
from pathlib import Path

from ccf_plugin.files import made_folder, write_together
from ccf_plugin.theory.figure import draw
from ccf_plugin.theory.study import Study, StudyRow


def save_study(study: Study, stem: Path) -> list[Path]:
    """Write ``stem``.csv (the rows), .json (everything) and .png (the figure)."""
    buffer = StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(field.name for field in fields(StudyRow))
    writer.writerows([f"{value:.6g}" for value in astuple(row)] for row in study.rows)
    contents = {
        ".csv": buffer.getvalue().encode(),
        ".json": json.dumps(study.to_json(), indent=1, allow_nan=False).encode(),
        ".png": draw(study),
    }
    files = {stem.with_name(stem.name + suffix): content for suffix, content in contents.items()}
    with made_folder(stem.parent):
        write_together(files)
    return list(files)
