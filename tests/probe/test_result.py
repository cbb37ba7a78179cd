"""A result's files and its picture."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ccf_plugin import CrossClassResult, Head, InputError
from ccf_plugin.probe.confidence import wilson


@pytest.fixture
def result() -> CrossClassResult:
    matrix = np.array([[1.0, 0.6, np.nan], [0.6, 1.0, np.nan], [np.nan, np.nan, np.nan]])
    return CrossClassResult(
        matrix=matrix,
        class_attribution=np.array([[1.0, 0.0], [0.6, 0.8], [np.nan, np.nan]]),
        counts=np.array([3, 4, 0]),
        instance_matrix=np.array([[0.9, 0.7, np.nan], [0.5, np.nan, np.nan], [np.nan, np.nan, np.nan]]),
        clean_accuracy=0.8,
        robust_accuracy=0.407,
        class_names=("cat", "dog", "ship"),
        model="a network",
        head=Head(name="fc", kind="Linear", classes=3, features=2, history=("aux", "fc + aux")),
        data={"name": "digits", "split": "test", "count": 7},
        threat={"attack": "PGD", "norm": "Linf", "eps": 8 / 255, "steps": 20, "seed": 0},
        model_mode="eval",
        precision="float32",
        versions={"torch": "2.6"},
    )


def test_figures(result: CrossClassResult) -> None:
    assert result.cas == pytest.approx(1.2)
    assert result.cas_normalised == pytest.approx(0.6)  # of the two classes that have images
    assert result.instance_cas == pytest.approx(1.2)
    assert result.missing_classes == ("ship",)
    assert result.left_out == "no samples of ship"
    assert result.top_pairs() == [("cat", "dog", pytest.approx(0.6))]


def test_save_and_load_give_the_same_result(result: CrossClassResult, tmp_path: Path) -> None:
    files = result.save(tmp_path / "found")
    assert [file.name for file in files] == ["found.npz", "found.json"]
    loaded = CrossClassResult.load(tmp_path / "found.json")
    assert loaded.to_json() == result.to_json()
    for name in ("matrix", "class_attribution", "counts", "instance_matrix"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(result, name))
    assert (loaded.head, loaded.class_names) == (result.head, result.class_names)
    assert sorted(tmp_path.iterdir()) == sorted(files)  # nothing left aside


def test_json_is_strict_and_nan_is_null(result: CrossClassResult, tmp_path: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    _, description = result.save(tmp_path / "found")
    read = json.loads(description.read_text(), parse_constant=refuse)
    assert read["matrix"] == [[1.0, 0.6, None], [0.6, 1.0, None], [None, None, None]]
    assert read["head"] == {
        "name": "fc",
        "kind": "Linear",
        "classes": 3,
        "features": 2,
        "history": ["aux", "fc + aux"],
    }
    assert read == result.to_json()
    assert read["cas"] == pytest.approx(1.2)
    assert read["format"] == 1


def test_a_result_without_optional_parts(tmp_path: Path) -> None:
    plain = CrossClassResult(matrix=np.eye(2), class_attribution=np.eye(2), counts=np.array([1, 1]))
    plain.save(tmp_path / "plain")
    loaded = CrossClassResult.load(tmp_path / "plain")
    assert loaded.instance_cas is None
    assert loaded.head is None
    assert loaded.names == ("0", "1")
    assert loaded.title() == "CAS = 0.0"
    with pytest.raises(InputError, match="instances=True"):
        loaded.plot(instances=True)


@pytest.mark.parametrize(
    ("known", "title"),
    [
        ({"robust_accuracy": 0.407, "clean_accuracy": 0.8}, "RA = 40.7%, CAS = 0.0"),
        ({"clean_accuracy": 0.8}, "clean accuracy = 80.0%, CAS = 0.0"),
        ({"accuracy": 0.125}, "accuracy = 12.5%, CAS = 0.0"),
    ],
)
def test_the_title_names_the_accuracy_that_was_measured(known: dict[str, float], title: str, tmp_path: Path) -> None:
    result = CrossClassResult(matrix=np.eye(2), class_attribution=np.eye(2), counts=np.array([1, 1]), **known)
    assert result.title() == title
    result.save(tmp_path / "found")
    assert CrossClassResult.load(tmp_path / "found").title() == title


def test_files_of_older_and_newer_versions_are_read(result: CrossClassResult, tmp_path: Path) -> None:
    _, description = result.save(tmp_path / "found")
    described = json.loads(description.read_text())
    for later in ("accuracy", "repeats"):
        del described[later]
    del described["head"]["history"]
    described |= {"colour": "blue", "head": {**described["head"], "depth": 3}}
    description.write_text(json.dumps(described))
    loaded = CrossClassResult.load(description)
    assert loaded.accuracy is None
    assert loaded.head == Head(name="fc", kind="Linear", classes=3, features=2)
    expected = {**result.to_json(), "head": {**result.to_json()["head"], "history": []}}
    assert loaded.to_json() == {**expected, "colour": "blue"}  # what is not known is kept


@pytest.fixture
def recorded(result: CrossClassResult) -> CrossClassResult:
    """With everything that was counted beside C."""
    return replace(
        result,
        confusion_clean=np.array([[3, 0, 0], [1, 3, 0], [0, 0, 0]]),
        confusion_adversarial=np.array([[1, 2, 0], [2, 1, 1], [0, 0, 0]]),
        correct_clean=np.array([True] * 6 + [False]),
        correct=np.array([True, False, False, True, False, False, False]),
        logit_variance=2.5,
        mean_row_share=0.25,
        centred=True,
    )


def test_confusions_and_bits_are_saved(recorded: CrossClassResult, tmp_path: Path) -> None:
    npz, description = recorded.save(tmp_path / "found")
    loaded = CrossClassResult.load(npz)
    assert loaded.to_json() == recorded.to_json()
    for name in ("confusion_clean", "confusion_adversarial", "correct_clean", "correct"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(recorded, name))
        assert getattr(loaded, name).dtype == getattr(recorded, name).dtype
    with np.load(npz, allow_pickle=False) as archive:
        assert archive["correct"].tolist() == [0b10010000]  # a bit an image, the first the highest
    described = json.loads(description.read_text())
    assert described["class_accuracy"] == [pytest.approx(1 / 3), 0.25, None]
    assert described["confusion_adversarial"] == recorded.confusion_adversarial.tolist()
    assert (loaded.logit_variance, loaded.mean_row_share, loaded.centred) == (2.5, 0.25, True)


def test_files_of_before_have_no_confusions_and_yet_a_null(recorded: CrossClassResult, tmp_path: Path) -> None:
    npz, description = recorded.save(tmp_path / "found")
    old = ("matrix", "class_attribution", "counts", "instance_matrix")
    with np.load(npz, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in old}
    np.savez(npz, **arrays)
    described = json.loads(description.read_text())
    for later in ("logit_variance", "mean_row_share", "centred", "null", "cas_excess", "shared_part", "lengths"):
        del described[later]
    description.write_text(json.dumps(described))
    loaded = CrossClassResult.load(npz)
    for name in ("confusion", "confusion_clean", "class_accuracy", "correct", "correct_clean", "in_logit_units"):
        assert getattr(loaded, name) is None, name
    assert (loaded.logit_variance, loaded.mean_row_share, loaded.centred) == (None, None, False)
    assert loaded.null.cas_mean == recorded.null.cas_mean


def test_intervals_of_accuracies(recorded: CrossClassResult) -> None:
    assert recorded.interval("robust_accuracy") == wilson(3, 7)  # 0.407 of 7 images
    assert recorded.interval("clean_accuracy", level=0.5) == wilson(6, 7, 0.5)
    assert recorded.interval("accuracy") is None
    assert recorded.interval("cas") is None  # without parts of the images
    with pytest.raises(InputError, match=r"clean_accuracy, accuracy, cas, .*, found 'shared'"):
        recorded.interval("shared")


def test_nothing_is_pickled(result: CrossClassResult, tmp_path: Path) -> None:
    npz, description = result.save(tmp_path / "found")
    with np.load(npz, allow_pickle=False) as archive:
        assert set(archive.files) == {"matrix", "class_attribution", "counts", "instance_matrix"}

    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    np.savez(npz, matrix=np.array([Bomb()], dtype=object), class_attribution=np.eye(2), counts=np.ones(2))
    with pytest.raises(InputError):
        CrossClassResult.load(description)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "content", ["", "not json", "[]", "{}", '{"format": null}', '{"format": 99}', '{"format": 1}', "null"]
)
def test_a_broken_description_is_named(result: CrossClassResult, tmp_path: Path, content: str) -> None:
    _, description = result.save(tmp_path / "found")
    description.write_text(content)
    with pytest.raises(InputError, match=r"found\.json"):
        CrossClassResult.load(description)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", pickle.dumps({"matrix": 1})])
def test_a_broken_archive_is_named(result: CrossClassResult, tmp_path: Path, content: bytes) -> None:
    npz, _ = result.save(tmp_path / "found")
    npz.write_bytes(content)
    with pytest.raises(InputError, match="found"):
        CrossClassResult.load(npz)


def test_arrays_that_do_not_fit_each_other_are_refused(result: CrossClassResult, tmp_path: Path) -> None:
    npz, _ = result.save(tmp_path / "found")
    np.savez(npz, matrix=np.eye(3), class_attribution=np.ones((3, 2)), counts=np.ones(4))
    with pytest.raises(InputError):
        CrossClassResult.load(npz)


def test_files_of_two_results_are_refused(result: CrossClassResult, tmp_path: Path) -> None:
    other = replace(result, matrix=result.matrix * 0.5, counts=result.counts + 1)
    result.save(tmp_path / "result")
    other.save(tmp_path / "other")
    shutil.copy(tmp_path / "other.json", tmp_path / "result.json")
    with pytest.raises(InputError, match=r"two files of one result, found .*result\.npz .*differ in matrix, counts"):
        CrossClassResult.load(tmp_path / "result")


def test_a_missing_file_is_named(result: CrossClassResult, tmp_path: Path) -> None:
    npz, _ = result.save(tmp_path / "found")
    npz.unlink()
    with pytest.raises(InputError, match=r"found\.npz"):
        CrossClassResult.load(tmp_path / "found")


def test_saving_where_there_is_no_folder_leaves_nothing(result: CrossClassResult, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing"):
        result.save(tmp_path / "missing" / "found")
    assert list(tmp_path.iterdir()) == []


def test_the_picture_shows_the_matrix(result: CrossClassResult) -> None:
    pytest.importorskip("matplotlib")
    ax = result.plot()
    (image,) = ax.get_images()
    shown = image.get_array()
    np.testing.assert_array_equal(np.ma.filled(shown, np.nan), result.matrix)
    assert image.get_clim() == (0.0, 1.0)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["cat", "dog", "ship"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["cat", "dog", "ship"]
    assert ax.get_title() == "RA (PGD-20) = 40.7%, CAS = 1.2"
    assert len(ax.figure.axes) == 2  # the colour bar


def test_the_picture_of_instances_and_of_many_classes() -> None:
    pytest.importorskip("matplotlib")
    matrix = np.full((100, 100), 0.5)
    many = CrossClassResult(
        matrix=matrix, class_attribution=np.ones((100, 2)), counts=np.ones(100, dtype=int), instance_matrix=matrix / 2
    )
    ax = many.plot(instances=True, vmax=0.5)
    np.testing.assert_array_equal(ax.get_images()[0].get_array(), matrix / 2)
    assert ax.get_images()[0].get_clim() == (-0.75, 0.5)  # the paper's low end for so many classes
    assert ax.get_title().startswith("I-CAS = ")
    assert len(ax.get_xticklabels()) <= 25


def test_a_picture_file(result: CrossClassResult, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = result.save_picture(tmp_path / "found.png")
    assert file.read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [file]


def test_a_picture_into_ones_own_axes_leaves_them(result: CrossClassResult, tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    ax = Figure().add_subplot()
    result.save_picture(tmp_path / "found.png", ax=ax, title="mine")
    assert ax.get_title() == "mine"
    assert ax.images


def test_drawing_needs_no_display_and_leaves_nothing_global(result: CrossClassResult) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    result.plot()
    assert pyplot.get_fignums() == before


def test_a_matrix_of_very_many_classes_is_in_the_arrays_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ccf_plugin.probe.result_files._LISTED_CLASSES", 2)
    result = CrossClassResult(matrix=np.eye(3), class_attribution=np.eye(3), counts=np.ones(3, dtype=np.int64))
    result.save(tmp_path / "many")
    assert json.loads((tmp_path / "many.json").read_text())["matrix"] is None
    np.testing.assert_array_equal(CrossClassResult.load(tmp_path / "many").matrix, np.eye(3))


def test_what_a_newer_version_says_is_kept(tmp_path: Path) -> None:
    found = CrossClassResult(np.eye(2), np.ones((2, 3)), np.full(2, 4), provenance={"seed": 3, "later": [1, None]})
    found.save(tmp_path / "one")
    described = json.loads((tmp_path / "one.json").read_text())
    assert described["provenance"] == {"seed": 3, "later": [1, None]}
    newer = {**described, "colour": {"of": ["the", "sky"]}, "cas_of_tomorrow": 1.5}
    (tmp_path / "one.json").write_text(json.dumps(newer))
    read = CrossClassResult.load(tmp_path / "one")
    assert read.provenance == found.provenance
    read.save(tmp_path / "again")
    assert json.loads((tmp_path / "again.json").read_text()) == newer
    assert CrossClassResult.load(tmp_path / "again").unknown == {
        "colour": {"of": ["the", "sky"]},
        "cas_of_tomorrow": 1.5,
    }


def test_an_older_result_has_no_provenance(tmp_path: Path) -> None:
    CrossClassResult(np.eye(2), np.ones((2, 3)), np.full(2, 4)).save(tmp_path / "one")
    described = json.loads((tmp_path / "one.json").read_text())
    assert CrossClassResult.load(tmp_path / "one").unknown == {}  # all that is written is known
    del described["provenance"]
    (tmp_path / "one.json").write_text(json.dumps(described))
    assert CrossClassResult.load(tmp_path / "one").provenance == {}
