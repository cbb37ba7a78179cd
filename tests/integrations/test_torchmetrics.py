"""CAS as a torchmetrics metric."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from probe.conftest import small_batch
from probe.test_host import hooks_on
from torch import Tensor, nn

from ccf_plugin import CrossClassProbe, InputError

torchmetrics = pytest.importorskip("torchmetrics")
from torchmetrics.classification import MulticlassAccuracy, MulticlassRecall  # noqa: E402

from ccf_plugin.integrations.torchmetrics import ClassAttributionSimilarity  # noqa: E402

# what torchmetrics puts together, with compute_groups and without
GROUPS = {True: [["accuracy", "recall"], ["cas"]], False: []}
PASSES = [small_batch(seed=seed) for seed in range(3)]


def expected(model: nn.Module, passes=PASSES):
    with CrossClassProbe(model) as probe:
        for images, labels in passes:
            model(images)
            probe.update(labels)
        return probe.compute()


def test_the_metric_is_cas(model: nn.Module) -> None:
    model.eval()
    metric = ClassAttributionSimilarity(model, 4, 24)
    for images, labels in PASSES:
        model(images)
        batch_value = metric(labels)  # forward: the batch's own value, and on to the total
        assert float(batch_value) == pytest.approx(expected(model, [(images, labels)]).cas)
    assert float(metric.compute()) == pytest.approx(expected(model).cas)
    np.testing.assert_allclose(metric.matrix(), expected(model).matrix, atol=1e-12)
    metric.reset()
    model(PASSES[0][0])
    metric.update(PASSES[0][1])
    assert float(metric.compute()) == pytest.approx(expected(model, PASSES[:1]).cas)
    assert metric.state_dict() == {}
    metric.detach()
    assert hooks_on(model) == 0


@pytest.mark.parametrize("compute_groups", [True, False])
@pytest.mark.parametrize(
    "update",
    [
        lambda collection, logits, labels: collection.update(logits, labels),
        lambda collection, logits, labels: collection.update(preds=logits, target=labels),
    ],
    ids=["in order", "by keyword"],
)
def test_in_a_collection_with_accuracy(model: nn.Module, compute_groups: bool, update: Callable[..., None]) -> None:
    model.eval()
    metrics = {
        "accuracy": MulticlassAccuracy(4, average="micro"),
        "cas": ClassAttributionSimilarity(model, 4, 24),
        "recall": MulticlassRecall(4, average="micro"),
    }
    train = torchmetrics.MetricCollection(metrics, prefix="train_", compute_groups=compute_groups)
    test = train.clone(prefix="test_")
    for images, labels in PASSES:
        logits = model(images)
        for collection in (train, test):
            update(collection, logits, labels)
    whole = expected(model)
    for found, prefix in ((train.compute(), "train_"), (test.compute(), "test_")):
        assert float(found[f"{prefix}cas"]) == pytest.approx(whole.cas)
        assert float(found[f"{prefix}accuracy"]) == pytest.approx(whole.accuracy)
    assert sorted(map(sorted, train.compute_groups.values())) == GROUPS[compute_groups]
    train.reset()
    images, labels = PASSES[1]
    batch = train(model(images), labels)  # forward
    alone = expected(model, PASSES[1:2])
    assert float(batch["train_cas"]) == pytest.approx(alone.cas)
    assert float(train.compute()["train_cas"]) == pytest.approx(alone.cas)
    assert float(test.compute()["test_cas"]) == pytest.approx(whole.cas)


def test_a_model_and_its_average_that_are_equal_at_first_are_two(model: nn.Module) -> None:
    """Their states are equal after the first batch; a compute group of both would measure the model for its average."""
    model.eval()
    average = copy.deepcopy(model)
    pair = torchmetrics.MetricCollection(
        {"raw": ClassAttributionSimilarity(model, 4, 24), "average": ClassAttributionSimilarity(average, 4, 24)}
    )
    for collection in (pair, pair.clone()):
        for images, labels in PASSES:
            average(images)
            collection.update(model(images), labels)
            with torch.no_grad():
                average[2].weight.mul_(torch.linspace(0.5, 2.0, 24))
        found = collection.compute()
        assert float(found["raw"]) == pytest.approx(expected(model).cas)
        assert abs(float(found["average"]) - float(found["raw"])) > 0.1


@pytest.mark.parametrize(
    "call",
    [
        lambda metric, labels: metric.update(labels),
        lambda metric, labels: metric.update(labels=labels),
        lambda metric, labels: metric.update(target=labels),
        lambda metric, labels: metric.update(torch.rand(len(labels), 4), labels),
        lambda metric, labels: metric.update(preds=torch.rand(len(labels), 4), target=labels),
        lambda metric, labels: metric(torch.rand(len(labels), 4), labels),
    ],
)
def test_labels_by_any_name(model: nn.Module, call: Callable[[Any, Tensor], None]) -> None:
    images, labels = PASSES[0]
    metric = ClassAttributionSimilarity(model.eval(), 4, 24)
    model(images)
    call(metric, labels)
    assert float(metric.compute()) == pytest.approx(expected(model, PASSES[:1]).cas)


@pytest.mark.parametrize(("names", "found"), [((), "none"), (("labels", "target"), "labels and target")])
def test_labels_are_given_once(model: nn.Module, names: tuple[str, ...], found: str) -> None:
    images, labels = PASSES[0]
    metric = ClassAttributionSimilarity(model.eval(), 4, 24)
    model(images)
    with pytest.raises(InputError, match=rf"update\(labels\) or update\(preds, target\), found {found}$"):
        metric.update(**dict.fromkeys(names, labels))
    metric.update(labels)  # the pass is still there


def test_pickled_with_its_model(model: nn.Module) -> None:
    model.eval()
    metrics = torchmetrics.MetricCollection(
        {"accuracy": MulticlassAccuracy(4, average="micro"), "cas": ClassAttributionSimilarity(model, 4, 24)}
    )
    metrics.update(model(PASSES[0][0]), PASSES[0][1])
    loaded, its_model = pickle.loads(pickle.dumps((metrics, model)))
    with torch.no_grad():
        model[2].weight.mul_(-3)  # the pickle's is another
    for images, labels in PASSES[1:]:
        loaded.update(its_model(images), labels)
    with pytest.raises(InputError, match="found none"):
        loaded["cas"].update(model(PASSES[0][0]), PASSES[0][1])
    assert float(loaded.compute()["cas"]) == pytest.approx(expected(its_model).cas)


def test_a_copy_of_the_whole_measures_its_own_model(model: nn.Module) -> None:
    """As averages of weights and spawned processes copy a module that holds both."""
    whole = nn.ModuleDict({"network": model.eval(), "cas": ClassAttributionSimilarity(model, 4, 24)})
    copied = copy.deepcopy(whole)
    with torch.no_grad():
        model[2].weight.mul_(torch.linspace(-3, 3, 24))
    images, labels = PASSES[0]
    for one in (whole, copied):
        one["network"](images)
        one["cas"].update(labels)
        assert float(one["cas"].compute()) == pytest.approx(expected(one["network"], PASSES[:1]).cas)
    assert float(whole["cas"].compute()) != pytest.approx(float(copied["cas"].compute()))


def test_plot(model: nn.Module) -> None:
    pytest.importorskip("matplotlib")
    metric = ClassAttributionSimilarity(model.eval(), 4, 24)
    model(PASSES[0][0])
    metric.update(PASSES[0][1])
    figure, ax = metric.plot()
    np.testing.assert_array_equal(ax.get_images()[0].get_array(), metric.matrix())
    assert ax.get_title() == f"CAS = {float(metric.compute()):.1f}"
    assert figure is ax.figure


def test_faults_are_raised(model: nn.Module) -> None:
    metric = ClassAttributionSimilarity(model, 4, 24)
    images, labels = PASSES[0]
    model(images)
    metric.update(labels + 1)
    with pytest.raises(InputError, match=r"0\.\.3"):
        metric.compute()
    metric.reset()
    model(images * float("nan"))
    metric.update(labels)
    with pytest.raises(InputError, match="finite"):
        metric.compute()
    wrong = ClassAttributionSimilarity(model, 4, 23)
    model(images)
    with pytest.raises(InputError, match=r"\(4, 23\), found \(4, 24\)"):
        wrong.update(labels)
