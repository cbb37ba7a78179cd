"""CrossClassProbe in somebody else's loop: which pass counts, what is counted, and when it is not attached."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ccf_plugin import CrossClassProbe, CrossClassResult, InputError

from . import oracle
from .conftest import ROUNDING, small_batch, small_network

Batch = tuple[Tensor, Tensor]


def features_of(model: nn.Module, images: Tensor) -> Tensor:
    """The head's input, in eval mode, found without a probe."""
    with torch.no_grad():
        return model[1](model[0](images))


def expected_matrix(model: nn.Module, images: Tensor, labels: Tensor) -> list[list[float]]:
    g = features_of(model, images).double()
    return oracle.correlation_matrix(g.tolist(), model[2].weight.double().tolist(), labels.tolist())


def measured(model: nn.Module, *passes: Batch) -> CrossClassResult:
    with CrossClassProbe(model, instances=True) as probe:
        for images, labels in passes:
            model(images)
            probe.update(labels)
        return probe.compute()


def test_the_result_equals_the_oracle(model: nn.Module, batch: Batch) -> None:
    images, labels = batch
    result = measured(model.eval(), batch)
    np.testing.assert_allclose(result.matrix, expected_matrix(model, images, labels), atol=ROUNDING)
    g = features_of(model, images).double().tolist()
    instances = oracle.instance_matrix(g, model[2].weight.double().tolist(), labels.tolist())
    np.testing.assert_allclose(result.instance_matrix, instances, atol=ROUNDING)
    assert result.counts.tolist() == [3, 3, 3, 3]
    with torch.no_grad():
        assert result.accuracy == float((model(images).argmax(1) == labels).double().mean())
    assert result.model_mode == "eval"
    assert result.precision == "float32"
    assert result.head is not None
    assert (result.head.name, result.head.kind, result.head.classes, result.head.features) == ("2", "Linear", 4, 24)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_any_split_into_batches_gives_the_same_result(sizes: list[int], seed: int) -> None:
    model = small_network(seed=seed).eval()
    images, labels = small_batch(sum(sizes) + 4, seed=seed)
    whole = measured(model, (images, labels))
    parts = measured(model, *zip(images.split([*sizes, 4]), labels.split([*sizes, 4]), strict=True))
    np.testing.assert_allclose(parts.matrix, whole.matrix, atol=ROUNDING)
    np.testing.assert_allclose(parts.instance_matrix, whole.instance_matrix, atol=ROUNDING)
    assert parts.counts.tolist() == whole.counts.tolist()


def test_the_last_pass_before_update_counts(model: nn.Module, batch: Batch) -> None:
    images, labels = batch
    model.eval()
    with CrossClassProbe(model) as probe:
        model(images * 0.1)
        model(images)
        probe.update(labels)
        found = probe.compute().matrix
    np.testing.assert_allclose(found, expected_matrix(model, images, labels), atol=ROUNDING)


def test_capture_chooses_the_pass(model: nn.Module, batch: Batch) -> None:
    images, labels = batch
    model.eval()
    with CrossClassProbe(model) as probe:
        model(images * 0.3)
        with probe.capture():
            model(images * 0.1)
            model(images)
        model(images * 0.7)  # a clean pass for the train accuracy
        probe.update(labels)
        np.testing.assert_allclose(probe.compute().matrix, expected_matrix(model, images, labels), atol=ROUNDING)
        with pytest.raises(InputError, match="found none"):
            probe.update(labels)  # the clean pass is not left over
        with probe.capture():
            pass
        model(images)
        with pytest.raises(InputError, match="inside capture"):
            probe.update(labels)


def test_capture_is_left_behind_by_an_exception(model: nn.Module, batch: Batch) -> None:
    images, labels = batch
    with CrossClassProbe(model) as probe:
        with pytest.raises(RuntimeError), probe.capture():
            model(images[:, :, :1])
        model(images)
        probe.update(labels)
        assert probe.compute().counts.sum() == len(labels)


def test_rows_takes_part_of_a_pass(model: nn.Module, batch: Batch) -> None:
    images, labels = batch
    model.eval()
    with CrossClassProbe(model) as probe:
        model(torch.cat([images * 0.2, images]))  # clean and adversarial rows together
        probe.update(labels, rows=slice(len(images), None))
        result = probe.compute()
    np.testing.assert_allclose(result.matrix, expected_matrix(model, images, labels), atol=ROUNDING)
    assert result.counts.sum() == len(images)


def test_every_k_counts_one_update_in_k(model: nn.Module) -> None:
    model.eval()
    passes = [small_batch(8, seed=seed) for seed in range(5)]
    with CrossClassProbe(model, every=2) as probe:
        for images, labels in passes:
            model(images)
            probe.update(labels)
        found = probe.compute()
    np.testing.assert_array_equal(found.matrix, measured(model, *passes[::2]).matrix)
    assert found.counts.sum() == 24


def test_reset_forgets_but_stays_attached(model: nn.Module, batch: Batch) -> None:
    images, labels = batch
    model.eval()
    with CrossClassProbe(model) as probe:
        model(images * 0.1)
        probe.update(labels)
        probe.reset()
        with pytest.raises(InputError, match="at least one update"):
            probe.compute()
        model(images)
        probe.update(labels)
        np.testing.assert_array_equal(probe.compute().matrix, measured(model, batch).matrix)


def test_update_needs_a_new_pass(model: nn.Module, batch: Batch) -> None:
    images, labels = batch
    with CrossClassProbe(model) as probe:
        with pytest.raises(InputError, match="found none"):
            probe.update(labels)
        model(images)
        probe.update(labels)
        with pytest.raises(InputError, match="found none"):
            probe.update(labels)
        assert probe.compute().counts.sum() == len(labels)


def test_a_failed_pass_is_no_pass(model: nn.Module, batch: Batch) -> None:
    images, labels = batch
    with CrossClassProbe(model) as probe:
        model(images)
        with pytest.raises(RuntimeError):
            model(images[:, :, :1])
        with pytest.raises(InputError, match="found none"):
            probe.update(labels)


def test_after_detach(model: nn.Module, batch: Batch) -> None:
    images, labels = batch
    probe = CrossClassProbe(model)
    model(images)
    probe.update(labels)
    model(images)
    probe.detach()
    probe.detach()
    with pytest.raises(InputError, match="detach"):
        probe.update(labels)
    with pytest.raises(InputError, match="detach"):
        probe.run([batch])
    assert probe.compute().counts.sum() == len(labels)  # what was accumulated stays


def test_the_weight_of_the_pass_counts(model: nn.Module, batch: Batch) -> None:
    images, labels = batch
    model.eval()
    expected = expected_matrix(model, images, labels)
    with CrossClassProbe(model) as probe:
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        torch.optim.SGD(model.parameters(), lr=5.0).step()
        model[2].weight.data.mul_(-3)  # also what no version counter sees
        probe.update(labels)
        np.testing.assert_allclose(probe.compute().matrix, expected, atol=ROUNDING)


def test_run_measures_under_attack(model: nn.Module, batch: Batch) -> None:
    images, labels = batch
    model.train()
    model[0][1].eval()
    modes = [module.training for module in model.modules()]

    def attack(x: Tensor, y: Tensor) -> Tensor:
        noise = torch.rand_like(x)
        model.train()  # as torchattacks does
        return (x * 0.5 + noise * 0.2).clamp(0, 1)

    state = torch.get_rng_state()
    with CrossClassProbe(model) as probe:
        first = probe.run([batch, batch], attack, seed=3)
        again = probe.run([batch, batch], attack, seed=3)
        other = probe.run([batch, batch], attack, seed=4)
        clean = probe.run([batch, batch])
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    np.testing.assert_array_equal(first.matrix, again.matrix)
    assert not np.array_equal(first.matrix, other.matrix)
    model.eval()
    with torch.no_grad():
        accuracy = float((model(images).argmax(1) == labels).double().mean())
    assert first.clean_accuracy == clean.clean_accuracy == pytest.approx(accuracy)
    assert first.robust_accuracy is not None
    assert clean.robust_accuracy is None
    assert clean.threat is None
    assert first.threat == {"attack": "attack", "seed": 3}
    np.testing.assert_allclose(clean.matrix, expected_matrix(model, images, labels), atol=ROUNDING)


@pytest.mark.parametrize("overwrites", ["images", "labels", "both"])
def test_an_attack_that_writes_into_what_it_gets(model: nn.Module, batch: Batch, overwrites: str) -> None:
    images, labels = (tensor.clone() for tensor in batch)

    def attack(x: Tensor, y: Tensor) -> Tensor:
        if overwrites != "labels":
            x.mul_(0.5)
        if overwrites != "images":
            y.add_(1).remainder_(4)
        return x if overwrites != "labels" else x * 0.5

    with CrossClassProbe(model, instances=True) as probe:
        expected = probe.run([(images * 0.5, labels)])
        found = probe.run([batch], attack)
    np.testing.assert_array_equal(found.matrix, expected.matrix)
    np.testing.assert_array_equal(found.counts, expected.counts)
    assert found.robust_accuracy == expected.clean_accuracy
    assert torch.equal(batch[0], images)
    assert torch.equal(batch[1], labels)


@pytest.mark.parametrize("exponent", [-80, 80])
@pytest.mark.parametrize("options", [{}, {"max_per_class": 2}], ids=str)
def test_instances_of_any_scale(batch: Batch, exponent: int, options: dict[str, Any]) -> None:
    """The squares of such A(x) are no float32 numbers."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4, bias=False))
    with CrossClassProbe(model, instances=True, **options) as probe:
        matrices = []
        for scale in (1.0, 2.0**exponent):
            model(batch[0] * scale)
            probe.update(batch[1])
            matrices.append(probe.compute().instance_matrix)
            probe.reset()
    np.testing.assert_array_equal(*matrices)


@pytest.mark.filterwarnings("ignore:Casting complex")
def test_complex_features_that_a_real_head_reads(batch: Batch) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(64, 4, bias=False)

        def forward(self, images: Tensor, complex_part: float = 0.0) -> Tensor:
            product = (images.flatten(1) + complex_part * 1j) @ self.head.weight.T.to(torch.complex64)
            return torch.real(product)

    model = Model()
    with CrossClassProbe(model, instances=True) as probe:
        model(batch[0], complex_part=2.0)
        probe.update(batch[1])
        found = probe.compute()
    lists = batch[0].flatten(1).tolist(), model.head.weight.tolist(), batch[1].tolist()
    np.testing.assert_allclose(found.matrix, oracle.correlation_matrix(*lists), atol=ROUNDING)
    np.testing.assert_allclose(found.instance_matrix, oracle.instance_matrix(*lists), atol=ROUNDING)


@pytest.mark.parametrize(
    ("inputs", "measured_as", "title"),
    [
        (None, "accuracy", "accuracy = "),
        ("clean", "clean_accuracy", "clean accuracy = "),
        ("adversarial", "robust_accuracy", "RA = "),
    ],
)
def test_the_accuracy_is_named_as_the_caller_names_the_images(
    model: nn.Module, batch: Batch, inputs: Any, measured_as: str, title: str
) -> None:
    images, labels = batch
    model.eval()
    with torch.no_grad():
        share = float((model(images).argmax(1) == labels).double().mean())

    def told(result: CrossClassResult) -> dict[str, float]:
        names = ("accuracy", "clean_accuracy", "robust_accuracy")
        return {name: value for name in names if (value := getattr(result, name)) is not None}

    with CrossClassProbe(model, inputs=inputs) as probe:
        for round_ in ("before a run", "after one"):
            model(images)
            probe.update(labels)
            found = probe.compute()
            assert told(found) == {measured_as: share}, round_
            assert found.title().startswith(title)
            attacked = probe.run([batch], lambda x, _: x)
            assert told(attacked) == {"clean_accuracy": share, "robust_accuracy": share}
            assert attacked.title().startswith("RA (<lambda>) = ")
            assert probe.run([batch]).title().startswith("clean accuracy = ")
            probe.reset()


def test_passes_added_to_a_run_are_of_no_one_kind(model: nn.Module, batch: Batch) -> None:
    with CrossClassProbe(model.eval()) as probe:
        probe.run([batch], lambda x, _: x)
        model(batch[0])
        probe.update(batch[1])
        mixed = probe.compute()
    assert mixed.counts.sum() == 2 * len(batch[1])
    assert mixed.accuracy is not None
    assert (mixed.robust_accuracy, mixed.clean_accuracy) == (None, None)


def predictions(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(images).argmax(1)


def counted_pairs(labels: Tensor, predicted: Tensor) -> list[list[int]]:
    pairs = list(zip(labels.tolist(), predicted.tolist(), strict=True))
    return [[pairs.count((true, said)) for said in range(4)] for true in range(4)]


def test_confusions_and_records_of_a_run(model: nn.Module) -> None:
    batches = [small_batch(12), small_batch(7, seed=1)]
    images, labels = (torch.cat(column) for column in zip(*batches, strict=True))
    clean, turned = predictions(model, images), predictions(model, 1 - images)
    with CrossClassProbe(model) as probe:
        attacked = probe.run(batches, lambda x, _: 1 - x)
        plain = probe.run(batches)
        again = probe.compute()
    assert attacked.confusion_clean.tolist() == counted_pairs(labels, clean)
    assert attacked.confusion_adversarial.tolist() == counted_pairs(labels, turned)
    assert attacked.confusion is attacked.confusion_adversarial
    assert attacked.confusion_unnamed is None
    assert attacked.correct_clean.tolist() == (clean == labels).tolist()
    assert attacked.correct.tolist() == (turned == labels).tolist()
    assert attacked.robust_accuracy == attacked.correct.mean()
    assert (plain.confusion_clean.tolist(), plain.confusion_adversarial) == (counted_pairs(labels, clean), None)
    assert plain.correct.tolist() == plain.correct_clean.tolist() == (clean == labels).tolist()
    np.testing.assert_array_equal(again.correct, plain.correct)
    for label in range(4):
        of_class = labels == label
        assert attacked.class_accuracy[label] == float((turned == labels)[of_class].double().mean())
        assert attacked.class_accuracy_clean[label] == float((clean == labels)[of_class].double().mean())


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_loader_that_shuffles_leaves_no_records_to_be_paired(model: nn.Module, batch: Batch, shuffle: bool) -> None:
    loader = DataLoader(TensorDataset(*batch), batch_size=5, shuffle=shuffle)
    with CrossClassProbe(model) as probe:
        result = probe.run(loader, lambda x, y: x * 0.5)
    assert (result.correct is None) == (result.correct_clean is None) == shuffle
    assert result.confusion_clean.sum() == len(batch[1])


def test_updates_have_a_confusion_matrix_and_no_records(model: nn.Module, batch: Batch) -> None:
    images, labels = batch
    expected = counted_pairs(labels, predictions(model, images))
    for inputs, name in ((None, "unnamed"), ("clean", "clean"), ("adversarial", "adversarial")):
        with CrossClassProbe(model, inputs=inputs) as probe:
            model(images)
            probe.update(labels)
            found = probe.compute()
            kinds = {kind: getattr(found, f"confusion_{kind}") for kind in ("clean", "adversarial", "unnamed")}
            assert {kind: matrix.tolist() for kind, matrix in kinds.items() if matrix is not None} == {name: expected}
            assert (found.correct, found.correct_clean) == (None, None)
            probe.run([batch])
            model(images)
            probe.update(labels)  # in an order that nobody knows
            mixed = probe.compute()
            assert mixed.correct is None
            assert mixed.confusion.sum() == 2 * len(labels)


def test_too_many_classes_have_no_confusion_matrix(monkeypatch: pytest.MonkeyPatch, batch: Batch) -> None:
    monkeypatch.setattr("ccf_plugin.probe.sums._CONFUSED_CLASSES", 3)
    with CrossClassProbe(small_network()) as probe:
        found = probe.run([batch], lambda x, _: x)
    assert (found.confusion, found.confusion_clean, found.class_accuracy) == (None, None, None)
    assert found.robust_accuracy == found.correct.mean()


def test_a_class_without_samples_is_named_once(model: nn.Module, batch: Batch) -> None:
    images, labels = batch
    keep = labels != 2
    with CrossClassProbe(model.eval(), class_names=["ant", "bee", "cow", "doe"]) as probe:
        model(images[keep])
        probe.update(labels[keep])
        with pytest.warns(UserWarning, match="cow") as caught:
            result = probe.compute()
    assert len(caught) == 1
    assert result.missing_classes == ("cow",)
    assert np.isnan(result.matrix[2]).all()
    kept = np.delete(np.delete(result.matrix, 2, 0), 2, 1)
    assert result.cas == pytest.approx(kept[~np.eye(3, dtype=bool)].clip(min=0).sum())


def test_a_class_whose_attribution_is_zero_is_not_said_to_have_no_samples() -> None:
    model = nn.Linear(3, 4, bias=False)
    with torch.no_grad():
        model.weight[1] = 0
    with CrossClassProbe(model, class_names=["ant", "bee", "cow", "doe"]) as probe:
        model(torch.rand(6, 3))
        probe.update(torch.tensor([0, 1, 1, 2, 0, 2]))
        with pytest.warns(UserWarning, match=r"^no samples of doe; attribution is zero for bee: their rows of C"):
            result = probe.compute()
    assert result.missing_classes == ("bee", "doe")


def test_max_per_class_keeps_the_first_of_each_class(model: nn.Module) -> None:
    passes = [small_batch(10, seed=seed) for seed in range(3)]
    model.eval()
    with CrossClassProbe(model, instances=True, max_per_class=4) as probe:
        for images, labels in passes:
            model(images)
            probe.update(labels)
        found = probe.compute()
    images, labels = (torch.cat(column) for column in zip(*passes, strict=True))
    keep = torch.cat([(labels == label).nonzero()[:4, 0] for label in range(4)])
    expected = measured(model, (images[keep], labels[keep]))
    np.testing.assert_allclose(found.instance_matrix, expected.instance_matrix, atol=ROUNDING)
    assert found.counts.sum() == 30  # C itself is of all samples


def test_no_warning_where_nothing_is_missing(model: nn.Module, batch: Batch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measured(model, batch)


def test_a_thousand_missing_classes_are_not_all_named() -> None:
    with CrossClassProbe(nn.Linear(4, 1000)) as probe:
        probe.model(torch.rand(2, 4))
        probe.update(torch.tensor([0, 1]))
        with pytest.warns(UserWarning, match=r"no samples of 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, …: their rows"):
            assert len(probe.compute().missing_classes) == 998
