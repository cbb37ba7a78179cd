"""A result in one line, in a notebook, as a data frame, and beside another."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ccf_plugin.errors import InputError
from ccf_plugin.probe import CrossClassResult, Head

NAMES = ("cat", "<b>dog</b> & co", "γάτα")


@pytest.fixture
def result() -> CrossClassResult:
    """Three classes by hand; the third has no samples."""
    attribution = np.array([[1.0, 0.0], [0.6, 0.8], [np.nan, np.nan]])
    matrix = np.array([[1.0, 0.6, np.nan], [0.6, 1.0, np.nan], [np.nan] * 3])
    return CrossClassResult(
        matrix,
        attribution,
        np.array([4, 2, 0]),
        instance_matrix=matrix / 2,
        robust_accuracy=0.5,
        clean_accuracy=0.75,
        confusion_adversarial=np.array([[2, 1, 1], [1, 1, 0], [0, 0, 0]]),
        class_names=NAMES,
        model="net",
        head=Head("fc", "Linear", 3, 2),
        data={"name": "pets", "split": "test", "count": 6},
        threat={"attack": "PGD", "norm": "Linf", "eps": 8 / 255, "step_size": 2 / 255, "steps": 20, "seed": 0},
    )


def test_it_is_one_line_with_the_figures_and_no_array(result: CrossClassResult) -> None:
    assert repr(result) == (
        "CrossClassResult(model='net', classes=3, features=2, samples=6, RA (PGD-20)=50.0%, clean accuracy=75.0%, "
        "CAS=1.20 of 2, I-CAS=0.60)"
    )
    many = CrossClassResult(np.eye(1000), np.ones((1000, 8)), np.ones(1000, dtype=int))
    assert repr(many) == "CrossClassResult(classes=1000, features=8, samples=1000, CAS=0.00 of 999000)"


def test_a_notebook_shows_a_table_and_the_picture_and_names_are_no_html(result: CrossClassResult) -> None:
    html = result._repr_html_()
    cells = dict(re.findall(r"<th[^>]*>(.*?)</th><td[^>]*>(.*?)</td>", html))
    assert cells["RA (PGD-20)"] == "50.0%"
    assert cells["CAS"] == "1.20 of 2"
    assert cells["strongest pairs"].startswith("cat – &lt;b&gt;dog&lt;/b&gt; &amp; co 0.60")
    assert cells["left out"] == "no samples of γάτα"
    assert "<b>" not in html
    assert "src='data:image/png;base64,iVBORw0KGgo" in html
    assert len(html) < 100_000


def test_results_are_equal_where_all_that_files_hold_is(result: CrossClassResult, tmp_path: Path) -> None:
    result.save(tmp_path / "found")
    loaded = CrossClassResult.load(tmp_path / "found")
    assert loaded == result
    assert hash(loaded) == hash(result)
    assert len({loaded, result}) == 1
    other = result.matrix.copy()
    other[0, 1] += 1e-12
    for different in (
        replace(result, matrix=other),
        replace(result, instance_matrix=None),
        replace(result, model="other"),
        replace(result, counts=np.array([4, 2])),
    ):
        assert result != different
    assert (result == "result") is False


def test_data_frames_are_the_arrays_with_the_names(result: CrossClassResult) -> None:
    pytest.importorskip("pandas")
    matrix = result.to_pandas()
    assert list(matrix.index) == list(matrix.columns) == list(NAMES)
    np.testing.assert_array_equal(matrix.to_numpy(), result.matrix)
    classes = result.to_pandas("classes")
    assert list(classes.columns) == ["samples", "accuracy", "length", "cas"]
    np.testing.assert_allclose(classes["accuracy"], [0.5, 0.5, np.nan])
    np.testing.assert_allclose(classes["cas"], [0.6, 0.6, 0.0])
    assert classes["cas"].sum() == pytest.approx(result.cas)
    pairs = result.to_pandas("pairs")
    assert len(pairs) == 6
    assert dict(pairs.loc[("cat", NAMES[1])]) == {"c": 0.6, "c_instances": 0.3, "cas": 0.6, "confused": 1.0}
    with pytest.raises(InputError, match="what: expected one of matrix, classes, pairs, found 'rows'"):
        result.to_pandas("rows")
