"""Two results side by side: a case by hand, what may not be compared, paired intervals, and the picture's data."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ccf_plugin.errors import InputError, UnavailableError
from ccf_plugin.measuring.compare import compare, load_sides, name_sides
from ccf_plugin.measuring.pictures import draw_comparison
from ccf_plugin.measuring.settings import Settings
from ccf_plugin.probe import CrossClassResult

THREAT = {"attack": "PGD", "norm": "Linf", "eps": 8 / 255, "step_size": 2 / 255, "steps": 20, "seed": 0}
DATA = {"name": "digits", "split": "test", "count": 21, "input_size": [1, 8, 8]}


def result(matrix: Any, **fields: Any) -> CrossClassResult:
    matrix = np.array(matrix, dtype=float)
    known: dict[str, Any] = {
        "counts": np.full(len(matrix), 7),
        "class_names": ("ant", "bee", "cow")[: len(matrix)],
        "robust_accuracy": 0.5,
        "threat": THREAT,
        "data": DATA,
        "model_mode": "eval",
        "precision": "float32",
    }
    return CrossClassResult(matrix, np.ones((len(matrix), 4)), **(known | fields))


FIRST = result([[1, 0.5, -0.2], [0.5, 1, 0.1], [-0.2, 0.1, 1]])
SECOND = result([[1, 0.1, -0.6], [0.1, 1, 0.4], [-0.6, 0.4, 1]], robust_accuracy=0.3)


def test_three_classes_by_hand() -> None:
    found = compare(FIRST, SECOND)
    assert found.differences["cas"] == pytest.approx(2 * (0.5 + 0.1) - 2 * (0.1 + 0.4))
    assert found.differences["robust_accuracy"] == pytest.approx(0.2)
    assert found.differences["instance_cas"] is None
    assert found.matrix[0, 2] == pytest.approx(0.4)  # -0.2 - -0.6: neither adds to CAS, so no pair below names it
    assert found.lost() == [("ant", "bee", 0.5, 0.1)]
    assert found.gained() == [("bee", "cow", 0.1, 0.4)]
    described = found.to_json()
    assert described["lost"] == [{"classes": ["ant", "bee"], "first": 0.5, "second": 0.1}]
    assert described["matrix_difference"][0][2] == pytest.approx(0.4)
    assert described["bootstrap"] is None


def test_results_that_do_not_say_what_their_images_were_compare_too() -> None:
    plain = {"robust_accuracy": None, "threat": None}
    found = compare(replace(FIRST, **plain, accuracy=0.75), replace(SECOND, **plain, accuracy=0.5))
    assert found.differences["accuracy"] == pytest.approx(0.25)
    assert found.differences["robust_accuracy"] is None
    assert found.to_json()["first"]["accuracy"] == 0.75


def test_the_figures_move_by_what_the_pairs_move() -> None:
    found = compare(FIRST, SECOND)
    moved = sum(max(a, 0) - max(b, 0) for _, _, a, b in found.lost(9) + found.gained(9))
    assert 2 * moved == pytest.approx(found.differences["cas"])


def test_a_class_without_images_is_named_in_no_pair() -> None:
    hole = [[1, np.nan, -0.2], [np.nan, np.nan, np.nan], [-0.2, np.nan, 1]]
    found = compare(result(hole), SECOND)
    assert np.isnan(found.matrix[1]).all()
    assert found.to_json()["matrix_difference"][1] == [None, None, None]
    assert found.lost() == found.gained() == []


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (
            {"threat": {**THREAT, "eps": 4 / 255, "step_size": 1 / 255}},
            ("eps 8/255 and 4/255", "step_size 2/255 and 1"),
        ),
        ({"threat": {**THREAT, "steps": 10}}, ("steps 20 and 10",)),
        (
            {"threat": {**THREAT, "options": {"random_start": False}}},
            ("attack options none and {'random_start': False}",),
        ),
        ({"threat": None}, ("attack PGD and none", "eps 8/255 and none")),
        ({"data": {"name": "cifar10", "split": "test", "count": 21}}, ("data digits and cifar10",)),
        ({"data": {**DATA, "input_size": [1, 16, 16]}}, ("input size 1×8×8 and 1×16×16",)),
        ({"data": {**DATA, "downscale": 2}}, ("downscale 1 and 2",)),
        ({"counts": np.array([7, 7, 8])}, ("images 21 and 22",)),
        ({"counts": np.array([6, 7, 8])}, ("other numbers of images",)),
        ({"class_names": ("ant", "bee", "doe")}, ("class names ant, bee, cow and ant, bee, doe",)),
        ({"model_mode": "train"}, ("mode eval and train",)),
    ],
    ids=lambda value: str(value)[:20] if isinstance(value, tuple) else "",
)
def test_what_differs_is_named(changed: dict[str, Any], named: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="expected the same data and attack for both") as caught:
        compare(FIRST, replace(SECOND, **changed))
    for text in named:
        assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_ra_beside_c_of_clean_images_must_be_of_one_attack() -> None:
    """A run that probes clean images has an RA too; its attack is no part of what C is measured under."""
    first, second, unknown = (
        replace(FIRST, threat=None, provenance={} if attack is None else {"attack": attack})
        for attack in (THREAT, {**THREAT, "eps": 4 / 255}, None)
    )
    assert compare(first, first).differences["robust_accuracy"] == 0
    assert compare(first, unknown).first == first
    with pytest.raises(InputError, match="found eps of RA 8/255 and 4/255; measure"):
        compare(first, second)
    assert first.title().startswith("RA (PGD-20) = ")
    assert unknown.title().startswith("RA = ")


def test_other_pixels_under_the_same_name_are_told() -> None:
    hashed = [replace(FIRST, provenance={"images": letter * 16}) for letter in "aab"]
    with warnings.catch_warnings(action="error"):
        compare(hashed[0], hashed[1])
        compare(hashed[0], FIRST)
    with pytest.warns(UserWarning, match=f"their pixels differ .hashes {'a' * 16} and {'b' * 16}."):
        compare(hashed[0], hashed[2])


def test_an_older_result_says_nothing_of_the_input_size() -> None:
    older = replace(SECOND, data={name: value for name, value in DATA.items() if name != "input_size"})
    assert compare(FIRST, older).second == older
    assert compare(older, FIRST).first == older


def test_pairs_that_are_negative_in_both_are_counted_apart() -> None:
    """ant – bee moves from -0.1 to -0.4, and CAS does not."""
    first = result([[1, -0.1, 0.3], [-0.1, 1, -0.2], [0.3, -0.2, 1]])
    second = result([[1, -0.4, 0.1], [-0.4, 1, 0.5], [0.1, 0.5, 1]])
    found = compare(first, second)
    assert found.uncounted.tolist() == [[False, True, False], [True, False, False], [False, False, False]]
    assert found.uncounted_pairs == "1 of 3 pairs"
    assert found.to_json()["negative_in_both"] == 1
    assert [pair[:2] for pair in found.lost() + found.gained()] == [("ant", "cow"), ("bee", "cow")]
    titles = [ax.get_title() for ax in draw_comparison(found, titles=("a", "b")).axes if ax.images]
    assert "ΔCAS = −0.6, without 1 of 3 pairs: negative in both" in " ".join(titles[2].split())
    assert compare(second, result(np.eye(3))).uncounted_pairs == ""


def test_other_class_counts_are_refused() -> None:
    with pytest.raises(InputError, match="classes 3 and 2"):
        compare(FIRST, result(np.eye(2)))


def test_an_older_result_gives_an_attack_without_steps_one() -> None:
    fgsm = {**THREAT, "attack": "FGSM", "step_size": None, "steps": None}
    older = replace(SECOND, threat={**fgsm, "steps": 1})
    assert compare(replace(FIRST, threat=fgsm), older).second == older
    with pytest.raises(InputError, match="steps none and 2"):
        compare(replace(FIRST, threat=fgsm), replace(SECOND, threat={**fgsm, "steps": 2}))


def test_another_seed_of_the_attack_is_the_same_attack_and_told() -> None:
    other = replace(SECOND, threat={**THREAT, "seed": 5})
    with pytest.warns(UserWarning, match=r"other random numbers .seed 0 and 5., by which RA and C differ too"):
        compare(FIRST, other)
    with warnings.catch_warnings(action="error"):
        compare(FIRST, replace(SECOND, threat={name: THREAT[name] for name in THREAT if name != "seed"}))


def test_results_without_parts_have_no_intervals() -> None:
    assert compare(FIRST, SECOND).paired is None
    with pytest.raises(InputError, match="expected a result with intervals of CAS, found none"):
        compare(FIRST, SECOND, bootstrap=10)


def test_one_run_is_its_best_against_its_last(digits_run: Path, tmp_path: Path) -> None:
    best, last = name_sides(str(digits_run), None)
    assert (Path(best).name, Path(last).name) == ("best.safetensors", "last.safetensors")
    assert name_sides("a", "b") == ("a", "b")
    with pytest.raises(InputError, match="expected two models, or one run folder"):
        name_sides(str(tmp_path), None)


def test_one_run_that_averages_is_its_averaged_weights(digits_run: Path, tmp_path: Path) -> None:
    for name in ("best", "last"):
        for copy in (name, f"{name}_average"):
            shutil.copy(digits_run / f"{name}.safetensors", tmp_path / f"{copy}.safetensors")
    assert [Path(side).stem for side in name_sides(str(tmp_path), None)] == ["best_average", "last_average"]


def test_one_run_whose_best_epoch_is_its_last_has_nothing_to_compare(digits_run: Path, tmp_path: Path) -> None:
    for name in ("best", "last"):
        shutil.copy(digits_run / "best.safetensors", tmp_path / f"{name}.safetensors")
    with pytest.raises(UnavailableError, match="found epoch 3 to be the best and the last of"):
        name_sides(str(tmp_path), None)
    best, last = (str(tmp_path / f"{name}.safetensors") for name in ("best", "last"))
    with pytest.raises(UnavailableError, match="found epoch 3 to be the best and the last of"):
        name_sides(last, best)  # named one by one, it is the same run
    assert name_sides(best, best) == (best, best)


def test_a_model_beside_a_result_is_measured_as_the_result_was(digits_run: Path, tmp_path: Path) -> None:
    best, last = name_sides(str(digits_run), None)
    first, _ = load_sides(best, last, Settings.of(eps="4/255", steps=3, limit=50))
    measured = first.measure()  # type: ignore[union-attr]
    measured.save(tmp_path / "saved")
    saved, model = load_sides(str(tmp_path / "saved"), last)
    assert saved.matrix.tolist() == measured.matrix.tolist()  # type: ignore[union-attr]
    assert model.describe_attack() == {k: v for k, v in measured.threat.items() if k != "seed"}  # type: ignore
    assert len(model.data.split) == 50  # type: ignore[union-attr]
    with pytest.raises(InputError, match="eps 4/255 and 2/255"):
        load_sides(str(tmp_path / "saved.npz"), last, Settings.of(eps="2/255"))
    with pytest.raises(InputError, match="a model to measure with eps, steps, found two results"):
        load_sides(str(tmp_path / "saved"), str(tmp_path / "saved.json"), Settings.of(eps="2/255", steps=3))
    with pytest.raises(InputError, match="one checkpoint for each model with weights of your own"):
        load_sides(best, last, checkpoint=[Path("x.pt")])


def test_a_model_beside_a_centred_result_is_centred_too(digits_run: Path, tmp_path: Path) -> None:
    best, last = name_sides(str(digits_run), None)
    first, _ = load_sides(best, last, Settings.of(clean=True, limit=20, centre=True))
    first.measure().save(tmp_path / "saved")  # type: ignore[union-attr]
    saved, model = load_sides(str(tmp_path / "saved"), last)
    assert saved.centred  # type: ignore[union-attr]
    assert model.probe.centre  # type: ignore[union-attr]


@pytest.mark.parametrize("classes", [3, 20, 100, 200])
def test_the_picture_holds_the_three_matrices_in_the_paper_s_colours(classes: int) -> None:
    rng = np.random.default_rng(0)
    sides = []
    for _ in range(2):
        rows = rng.normal(size=(classes, 8))
        units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        names = tuple(f"some long class name {index}" for index in range(classes))
        sides.append(result(units @ units.T, class_names=names, counts=np.full(classes, 2)))
    found = compare(*sides)
    figure = draw_comparison(found, titles=("best", "last"))
    panels = [ax for ax in figure.axes if ax.images]
    for ax, matrix in zip(panels, (sides[0].matrix, sides[1].matrix, found.matrix), strict=True):
        np.testing.assert_allclose(ax.images[0].get_array(), matrix)
    scale = (-0.75, 0.75) if classes >= 100 else (0.0, 1.0)
    assert [ax.images[0].get_clim() for ax in panels] == [scale, scale, (0.0, 0.5)]
    figure.canvas.draw()
    labels = panels[0].get_yticklabels()
    assert len(labels) == {3: 3, 20: 20, 100: 20, 200: 20}[classes]  # each, or each fifth or tenth
    boxes = [label.get_window_extent() for label in labels]
    assert not any(a.overlaps(b) for a, b in pairwise(boxes)), "label soup"
    below = [label.get_window_extent() for label in panels[0].get_xticklabels()]
    assert not any(a.overlaps(b) for a, b in pairwise(below))


def test_colours_can_be_chosen_and_must_ascend() -> None:
    figure = draw_comparison(compare(FIRST, SECOND), titles=("a", "b"), vmin=-1.0, difference_scale=(-0.5, 0.5))
    panels = [ax for ax in figure.axes if ax.images]
    assert [ax.images[0].get_clim() for ax in panels] == [(-1.0, 1.0), (-1.0, 1.0), (-0.5, 0.5)]
    with pytest.raises(InputError, match="expected vmin below vmax, found 1 and 1"):
        draw_comparison(compare(FIRST, SECOND), titles=("a", "b"), vmin=1.0)
