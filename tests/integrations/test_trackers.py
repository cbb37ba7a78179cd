"""What goes to a tracker, and how a picture does; the trackers themselves are in the tests of those who bring them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ccf_plugin.integrations.trackers import class_figures, figures, log_picture
from ccf_plugin.probe import CrossClassResult


def _result(classes: int = 3) -> CrossClassResult:
    matrix = np.where(np.eye(classes, dtype=bool), 1.0, 0.5)
    confusion = np.full((classes, classes), 1)
    return CrossClassResult(
        matrix, np.ones((classes, 2)), np.full(classes, classes), accuracy=0.5, confusion_unnamed=confusion
    )


def test_figures_by_name() -> None:
    found = figures(_result())
    assert (found["cas"], found["accuracy"]) == (3.0, 0.5)
    assert "robust_accuracy" not in found
    of_classes = class_figures(_result())
    assert of_classes == {
        **{f"class_accuracy/{label}": pytest.approx(1 / 3) for label in range(3)},
        **{f"class_cas/{label}": 1.0 for label in range(3)},
    }
    assert class_figures(_result(101)) == {}


def test_a_summary_writer_takes_the_picture_and_what_is_no_tracker_does_not(tmp_path: Path) -> None:
    board = pytest.importorskip("torch.utils.tensorboard")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with board.SummaryWriter(str(tmp_path)) as writer:
        assert log_picture(writer, "C", _result(), 7)
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    (image,) = events.Images("C")
    assert (image.step, image.width, image.height) == (7, 640, 560)
    assert log_picture(object(), "C", _result(), 7) is False
