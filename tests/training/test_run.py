"""Whole runs on tiny data: what the folder holds, that it repeats, that it refuses."""

from __future__ import annotations

import json
import shutil
import warnings
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.runs import SHORT, Quiet, assert_same_run, contents, tiny

from ccf_plugin.errors import CCFError, DivergedError, InputError, UnavailableError
from ccf_plugin.measuring.settings import Settings
from ccf_plugin.measuring.subject import load_subject
from ccf_plugin.probe import CrossClassResult
from ccf_plugin.report.page import build_report
from ccf_plugin.runs.environment import read_environment
from ccf_plugin.runs.layout import result_of
from ccf_plugin.runs.log import read_log
from ccf_plugin.runs.selection import BIASED, selection_free_accuracy, two_fold_accuracy
from ccf_plugin.threat import ThreatModel
from ccf_plugin.training import loop
from ccf_plugin.training.loop import train
from ccf_plugin.training.recipe_files import load_recipe
from ccf_plugin.training.run import Run
from ccf_plugin.training.setup import prepare
from ccf_plugin.zoo.attacks import build_attack
from ccf_plugin.zoo.datasets import load_data
from ccf_plugin.zoo.models import load_model


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(tiny(), tmp_path_factory.mktemp("runs") / "tiny", Quiet())


def test_the_folder_holds_what_the_design_says(finished: Run) -> None:
    folder = finished.folder
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {
        ".lock",
        "recipe.toml",
        "environment.json",
        "log.csv",
        "best.safetensors",
        "last.safetensors",
        "epochs/002.safetensors",
        "state/003.safetensors",
        "state/last.json",
        *(f"probe/{epoch:03}.{suffix}" for epoch in (1, 2, 3) for suffix in ("npz", "json")),
        *(f"probe/best.{suffix}" for suffix in ("npz", "json")),
    }
    assert load_recipe(str(folder / "recipe.toml")) == finished.recipe
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["versions"]["torch"] == metadata.version("torch")
    assert environment["threads"] == 1


def test_which_images_were_right_is_kept_of_each_evaluated_epoch(tmp_path: Path) -> None:
    run = train(tiny("probe.every=3", "average={kind='ema', decay=0.5}"), tmp_path / "run", Quiet())
    names = sorted(path.name for path in (run.folder / "records").iterdir())
    assert names == ["001.npz", "001_average.npz", "002.npz", "002_average.npz"]
    for suffix in ("", "_average"):
        kept = [run.folder / "records" / f"{epoch:03}{suffix}.npz" for epoch in (1, 2)]
        correct = []
        for file in (*kept, run.folder / "probe" / f"003{suffix}.npz"):
            with np.load(file) as archive:
                correct.append(np.unpackbits(archive["correct"], count=20).astype(bool))
        accuracies = [getattr(row, f"test_robust_accuracy{suffix}") for row in run.rows]
        assert [record.mean() for record in correct] == accuracies
        expected = two_fold_accuracy(np.stack(correct))
        assert selection_free_accuracy(run.folder, run.rows, run.selected_by, suffix) == expected


def test_the_best_epochs_result_is_kept_whatever_the_recipe_probes(tmp_path: Path) -> None:
    run = train(tiny("probe.every=3", "average={kind='ema', decay=0.5}"), tmp_path / "run", Quiet())
    names = sorted(path.stem for path in (run.folder / "probe").glob("*.npz"))
    assert names == ["003", "003_average", "best", "best_average"]
    for suffix in ("", "_average"):
        best = run.best_of(suffix)
        assert best is not None
        assert CrossClassResult.load(run.folder / "probe" / f"best{suffix}").cas == getattr(best, f"cas{suffix}")


def test_the_log_has_a_row_per_epoch_with_the_designs_columns(finished: Run) -> None:
    header, *lines = (finished.folder / "log.csv").read_text().splitlines()
    assert header == (
        "epoch,lr,train_loss,train_robust_accuracy,test_clean_accuracy,test_robust_accuracy,cas,instance_cas,"
        "seconds,images_per_second,alarm,selected_by,cas_null,cas_excess,shared,squared_lengths,robust_fall_p,"
        "train_clean_accuracy,test_clean_loss,test_robust_loss,train_attacked_accuracy,negative"
    )
    assert len(lines) == 3
    rows = read_log(finished.folder)
    assert [row.epoch for row in rows] == [1, 2, 3]
    np.testing.assert_allclose([row.lr for row in rows], [0.1, 0.01, 0.001])  # decay at 1 shows in epoch 2
    for row in rows:
        result = CrossClassResult.load(finished.folder / "probe" / f"{row.epoch:03}")
        assert row.cas == pytest.approx(result.cas, rel=1e-5)
        assert row.cas_null == pytest.approx(result.null.cas_mean, rel=1e-5)
        assert row.cas_excess == pytest.approx(result.cas - result.null.cas_mean, abs=1e-4)
        assert (row.test_clean_loss, row.test_robust_loss) == pytest.approx(
            (result.clean_loss, result.robust_loss), rel=1e-5
        )
        assert row.negative == pytest.approx(result.negative_part, rel=1e-5)
        assert row.squared_lengths == pytest.approx((result.lengths**2).sum() / result.logit_variance, rel=1e-5)
        assert row.test_robust_accuracy == pytest.approx(result.robust_accuracy)
        assert result.counts.tolist() == [2] * 10
        assert result.model_mode == "eval"
        assert result.threat is not None
        assert result.threat["steps"] == 2
        assert result.threat["eps"] == 20 / 255


def test_best_is_the_highest_test_robust_accuracy_and_the_first_of_equals(finished: Run) -> None:
    rows = read_log(finished.folder)
    best = max(row.test_robust_accuracy or 0 for row in rows)
    first = next(row for row in rows if row.test_robust_accuracy == best)
    assert finished.best is not None
    assert finished.best.epoch == first.epoch


def test_the_best_weights_are_those_of_the_best_epoch(tmp_path: Path) -> None:
    run = train(tiny("checkpoints.every=1"), tmp_path / "run", Quiet())
    assert run.best is not None
    kept = run.folder / "epochs" / f"{run.best.epoch:03}.safetensors"
    assert (run.folder / "best.safetensors").read_bytes() == kept.read_bytes()


def test_train_accuracies_are_those_of_plain_training_images_in_eval_mode(tmp_path: Path) -> None:
    run = train(tiny("data.test_limit=50", "checkpoints.every=1", "precision=float32"), tmp_path / "run", Quiet())
    digits = load_data("digits", train_per_class=6).train  # 60 images, of which as many as test images are measured
    assert digits is not None
    rows = [place * 60 // 50 for place in range(50)]
    for epoch, row in enumerate(run.rows, 1):
        model = load_model(str(run.folder / "epochs" / f"{epoch:03}.safetensors")).model
        with torch.no_grad():
            predicted = model(digits.images[rows].float() / 255).argmax(1)
        assert row.train_clean_accuracy == float((predicted == digits.labels[rows]).double().mean())
        threat = ThreatModel("Linf", 20 / 255, 5 / 255, 2)
        attacked = build_attack(None, model, threat, seed=0)(digits.images[rows].float() / 255, digits.labels[rows])
        with torch.no_grad():
            withstands = model(attacked).argmax(1) == digits.labels[rows]
        assert row.train_attacked_accuracy == float(withstands.double().mean())


def test_a_run_loads_as_a_model_and_its_weights_without_the_package(finished: Run) -> None:
    loaded = load_model(str(finished.folder))
    plain = load_file(finished.folder / "best.safetensors")
    assert plain.keys() == loaded.model.state_dict().keys()
    assert loaded.data == "digits"
    assert loaded.threat == {"norm": "Linf", "eps": 20 / 255, "step_size": 5 / 255, "steps": 2}
    assert loaded.test_limit == 20
    assert loaded.class_names == tuple("0123456789")
    assert loaded.model(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_a_run_of_smaller_images_is_measured_on_such(tmp_path: Path) -> None:
    run = train(tiny("data.downscale=2", "optim.epochs=1"), tmp_path / "run", Quiet())
    logged = CrossClassResult.load(result_of(run.folder, 1))
    subject = load_subject(str(run.folder), Settings.of(device="cpu"))
    again = subject.measure()
    assert subject.data.split.images.shape == (20, 1, 4, 4)
    expected = {"name": "digits", "split": "test", "count": 20, "input_size": [1, 4, 4], "downscale": 2}
    assert again.data == logged.data == expected
    assert again.provenance["downscale"] == 2
    assert (again.clean_accuracy, again.robust_accuracy) == (logged.clean_accuracy, logged.robust_accuracy)
    whole = load_subject(str(run.folder), Settings.of(device="cpu", downscale=1))
    assert whole.data.split.images.shape == (20, 1, 8, 8)


def test_extra_images_train_beside_the_data_and_belong_to_the_run(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (9, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "extra.npz", x=images, y=np.arange(9))
    extra = f"data.extra=npz:{tmp_path / 'extra.npz'}"
    run = train(
        tiny(extra, "data.extra_share=0.25", "optim.epochs=1", "ensembling={ramp=[1, 2]}"), tmp_path / "run", Quiet()
    )
    logged = json.loads((run.folder / "environment.json").read_text())["images"]
    assert logged.keys() == {"train", "extra", "test", "classes"}
    np.savez(tmp_path / "extra.npz", x=images[::-1], y=np.arange(9))
    with pytest.raises(InputError, match="extra"):
        train(
            tiny(extra, "data.extra_share=0.25", "optim.epochs=2"),
            run.folder,
            resume=True,
            allow_change=["optim.epochs"],
        )


@pytest.mark.parametrize(
    ("images", "labels", "fault"),
    [
        ((9, 6, 6), 9, r"data.extra: expected images of 1×8×8 as digits has, found 1×6×6"),
        ((12, 8, 8), 12, r"data.extra: expected labels of the 10 classes, found 12 classes"),
    ],
)
def test_extra_images_that_do_not_go_with_the_data(
    images: tuple[int, ...], labels: int, fault: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "extra.npz", x=np.zeros(images, dtype=np.uint8), y=np.arange(labels))
    with pytest.raises(InputError, match=fault):
        train(tiny(f"data.extra=npz:{tmp_path / 'extra.npz'}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_other_images_at_the_path_of_a_runs_own_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    x, y = np.arange(8 * 64, dtype=np.uint8).reshape(8, 8, 8), np.arange(8) % 2
    np.savez("data.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    train(tiny("data.name=npz:data.npz", "optim.epochs=1", "data.test_limit=6"), Path("run"), Quiet())
    with warnings.catch_warnings(action="error"):
        load_subject("run", Settings())
        load_subject("run/last.safetensors", Settings())
    np.savez("data.npz", x_train=x, y_train=y, x_test=255 - x, y_test=y)
    with pytest.warns(UserWarning, match="npz:data.npz are other test images than those that run was measured on"):
        load_subject("run", Settings())
    with warnings.catch_warnings(action="error"):  # asked for
        load_subject("run", Settings.of(data="npz:data.npz"))


def test_grey_images_are_not_spread_over_a_runs_channels(finished: Run, tmp_path: Path) -> None:
    y = np.arange(10)
    np.savez(tmp_path / "colour.npz", x=np.zeros((10, 8, 8, 3), dtype=np.uint8), y=y)
    expected = "expected images of 1 channel for .*, found 3 in npz:.*; choose data to match, or convert it"
    with pytest.raises(InputError, match=expected):
        load_subject(str(finished.folder), Settings.of(data=f"npz:{tmp_path / 'colour.npz'}"))


def test_extra_images_have_the_labels_of_the_datas_classes(tmp_path: Path) -> None:
    """The file's classes stand in another order: its 0 is the data's 1."""
    x, y = np.full((4, 8, 8), 7, dtype=np.uint8), np.array([0, 1, 0, 1])
    splits = {"x_train": x, "y_train": y, "x_test": x, "y_test": y}
    np.savez(tmp_path / "data.npz", **splits, classes=["ant", "bee"])
    data = [f"data.name=npz:{tmp_path / 'data.npz'}", f"data.extra=npz:{tmp_path / 'extra.npz'}"]
    for names, expected in ((["bee", "ant"], [1, 0, 0]), (["0", "1"], [0, 1, 1]), (None, [0, 1, 1])):
        np.savez(
            tmp_path / "extra.npz", x=x[:3], y=np.array([0, 1, 1]), **({} if names is None else {"classes": names})
        )
        extra = prepare(tiny(*data, "data.train_per_class=2"), torch.device("cpu")).extra
        assert extra is not None
        assert extra.labels.tolist() == expected
    np.savez(tmp_path / "extra.npz", x=x, y=y, classes=["ant", "cow"])
    with pytest.raises(InputError, match=r"expected the names of the 2 classes of npz:.*extra\.npz"):
        prepare(tiny(*data, "data.train_per_class=2"), torch.device("cpu"))


def test_two_runs_of_one_recipe_are_bit_identical(finished: Run, tmp_path: Path) -> None:
    again = train(tiny(), tmp_path / "again", Quiet())
    assert_same_run(again, finished)


def test_an_existing_run_is_never_overwritten_by_accident(finished: Run) -> None:
    before = contents(finished.folder)
    with pytest.raises(InputError, match=r"resume=True.*force=True.*out"):
        train(tiny(), finished.folder, Quiet())
    assert contents(finished.folder) == before


def test_force_replaces_a_run_and_touches_nothing_else(finished: Run, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "recipe.toml").write_text("")
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"found other files \(thesis.txt\)"):
        train(tiny("optim.epochs=1"), folder, Quiet(), force=True)
    (folder / "thesis.txt").unlink()
    with pytest.raises(InputError, match=r"found other files \(recipe.toml\)"):  # somebody's recipe, not a run
        train(tiny("optim.epochs=1"), folder, Quiet(), force=True)
    assert (folder / "recipe.toml").read_text() == ""
    copy = tmp_path / "copy"
    shutil.copytree(finished.folder, copy)
    train(tiny("optim.epochs=1", "checkpoints.every=0"), copy, Quiet(), force=True)
    assert not list((copy / "epochs").iterdir())
    assert len(read_log(copy)) == 1


def test_standard_training_keeps_the_epoch_of_the_best_clean_accuracy(tmp_path: Path) -> None:
    run = train(tiny("objective.loss=standard"), tmp_path / "standard", Quiet())
    assert all(row.train_attacked_accuracy is None for row in run.rows)
    assert run.best is not None
    assert run.best.test_clean_accuracy == max(row.test_clean_accuracy or 0 for row in run.rows)


def test_standard_training_probes_clean_images_and_still_tells_ra(tmp_path: Path) -> None:
    settings = ["objective.loss=standard", "probe.inputs=clean", "optim.epochs=2", "probe.every=2"]
    settings += ["evaluate.options={random_start = false}", "evaluate.eps=2/255"]
    run = train(tiny(*settings), tmp_path / "standard", Quiet())
    row, last = read_log(run.folder)
    assert row.train_robust_accuracy is None
    assert row.test_robust_accuracy is not None
    result = CrossClassResult.load(run.folder / "probe" / "002")
    assert result.threat is None
    attack = result.robust_threat
    assert attack is not None
    assert (attack["eps"], attack["options"]) == (2 / 255, {"random_start": False})
    assert result.provenance["images"] == read_environment(run.folder)["images"]["test"]
    page = build_report([run.folder])
    assert "RA under PGD-2, Linf, eps 2/255, step 0.5/255, random_start False" in page
    assert result.clean_accuracy == pytest.approx(last.test_clean_accuracy)
    assert result.correct is not None
    assert result.correct_clean is not None
    assert result.correct.mean() == pytest.approx(last.test_robust_accuracy)
    assert result.correct_clean.mean() == pytest.approx(last.test_clean_accuracy)
    assert selection_free_accuracy(run.folder, [row, last], BIASED) is not None


@pytest.mark.parametrize("later", [False, True])
def test_weights_that_fail_in_eval_mode_alone_are_not_kept(later: bool, tmp_path: Path) -> None:
    """In train mode BatchNorm hides them; running statistics do not. ``later``: the epoch would not be evaluated."""
    steps = ["optim.batch_size=60", "optim.momentum=0", "optim.weight_decay=0", "optim.decay_epochs=[1]"]
    even = tiny(*steps, "optim.decay_rate=1e-8")
    run = train(even, tmp_path / "run", Quiet())
    assert run.epoch == 3
    before = (run.folder / "last.safetensors").read_bytes()
    wild = tiny(*steps, "optim.decay_rate=1.0", "optim.lr=1e18", "optim.epochs=9", *(["evaluate.every=5"] * later))
    changed = ["optim.decay_rate", "optim.lr", "optim.epochs", "evaluate.every"]
    with pytest.raises(DivergedError, match=r"no finite logits in eval mode in epoch 4, step 1.* epoch 3 remains in"):
        train(wild, tmp_path / "run", Quiet(), resume=True, allow_change=changed)
    assert (run.folder / "last.safetensors").read_bytes() == before


def test_the_learning_rate_named_is_that_of_the_step_that_failed(tmp_path: Path) -> None:
    wild = tiny("optim.lr=1e30", "optim.schedule=cyclic", "optim.epochs=2")
    with pytest.raises(DivergedError, match=r"epoch 1, step 3, at learning rate 5e\+29"):
        train(wild, tmp_path / "run", Quiet())


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_good_epoch(tmp_path: Path) -> None:
    folder = tmp_path / "wild"
    with pytest.raises(CCFError, match=r"finite loss.*epoch 1.*learning rate 1e\+30"):
        train(tiny("optim.lr=1e30"), folder, Quiet())
    assert not (folder / "last.safetensors").exists()


def test_epochs_between_evaluations_leave_their_figures_empty(tmp_path: Path) -> None:
    run = train(tiny("evaluate.every=2", "probe.instances=true"), tmp_path / "sparse", Quiet())
    rows = read_log(run.folder)
    assert [row.cas is not None for row in rows] == [False, True, True]  # the last epoch is always evaluated
    assert rows[2].instance_cas is not None
    assert not (run.folder / "probe" / "001.npz").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.name=npz:{tmp}/absent.npz"], "absent.npz"),
        (["model.name=preact_resnet18", "model.options={{}}"], "takes 3×32×32 images, found 1×8×8"),
        (["model.options.depth=3"], "no option 'depth'"),
        (["model.mean=[0.5,0.5]", "model.std=[1,1]"], "expected 1 values, one per channel, found 2 values"),
        (["data.crop_padding=8"], "crop_padding"),
        (["device=cuda"], "cuda"),
        (["device=gpu"], "device"),
    ],
)
def test_what_cannot_be_trained_is_said_before_anything_is_written(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    recipe = load_recipe("digits", [*SHORT, *(text.format(tmp=tmp_path) for text in overrides)])
    if "device=cuda" in overrides and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(CCFError, match=message):
        train(recipe, tmp_path / "run", Quiet())
    assert not (tmp_path / "run").exists()


def test_stop_ends_a_run_on_its_alarm_and_it_stays_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "alarms", lambda rows, row: ["CAS falling"] if row.epoch in (2, 4, 5) else [])
    recipe = tiny("optim.epochs=7", "stop={on=['CAS falling'], patience=2}")
    run = train(recipe, tmp_path / "run", Quiet())
    assert [row.alarm for row in read_log(run.folder)] == ["", "CAS falling", "", "CAS falling", "CAS falling"]
    reporter = Quiet()
    assert train(recipe, tmp_path / "run", reporter, resume=True).is_finished
    assert reporter.rows == []


@pytest.mark.slow
def test_trackers_get_each_epochs_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    pytest.importorskip("wandb")
    for name, value in (("MODE", "offline"), ("SILENT", "true")):
        monkeypatch.setenv(f"WANDB_{name}", value)
    recipe = tiny("optim.epochs=2", "average={kind='ema', decay=0.5}", "probe.pictures=true")
    run = train(recipe, tmp_path / "run", Quiet(), trackers=["tensorboard", "wandb"])
    events = accumulator.EventAccumulator(str(run.folder / "trackers" / "ccf_plugin"))
    events.Reload()
    assert "cas" in events.Tags()["scalars"]
    assert [(event.step, event.value) for event in events.Scalars("cas")] == [
        (row.epoch, pytest.approx(row.cas)) for row in run.rows
    ]
    for ending in ("", "_average"):
        result = CrossClassResult.load(run.folder / "probe" / f"002{ending}")
        assert result.class_accuracy is not None
        logged = events.Scalars(f"class_accuracy{ending}/7")[-1]
        assert (logged.step, logged.value) == (2, pytest.approx(result.class_accuracy[7]))
        assert [image.step for image in events.Images(f"C{ending}")] == [1, 2]
    assert len(list(run.folder.glob("trackers/wandb/offline-run-*/files/media/images/C_[0-9]*.png"))) == 2
    train(tiny("optim.epochs=1"), tmp_path / "run", Quiet(), force=True)
    assert not (run.folder / "trackers").exists()


def test_a_tracker_that_is_not_installed_is_said(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"track: expected a tracker that is installed .*, found 'wonderboard'"):
        train(tiny(), tmp_path / "run", Quiet(), trackers=["wonderboard"])
    assert not (tmp_path / "run").exists()
