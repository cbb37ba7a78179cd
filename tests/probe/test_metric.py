"""CAS as a torchmetrics metric."""

from __future__ import annotations

import numpy as np
import pytest
from torch import nn

from ccf_plugin import CrossClassProbe, InputError

from .conftest import small_batch
from .test_host import hooks_on

torchmetrics = pytest.importorskip("torchmetrics")
from ccf_plugin.probe.metric import ClassAttributionSimilarity  # noqa: E402

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


def test_in_a_collection_and_cloned(model: nn.Module) -> None:
    model.eval()
    train = torchmetrics.MetricCollection({"cas": ClassAttributionSimilarity(model, 4, 24)}, prefix="train_")
    test = train.clone(prefix="test_")
    images, labels = PASSES[0]
    model(images)
    train.update(labels)
    test.update(labels)
    assert float(train.compute()["train_cas"]) == pytest.approx(expected(model, PASSES[:1]).cas)
    assert float(test.compute()["test_cas"]) == pytest.approx(expected(model, PASSES[:1]).cas)


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
