"""What the probe says to what it cannot measure: expected, found, remedy, and when it says it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ccf_plugin import CrossClassProbe, InputError

Batch = tuple[Tensor, Tensor]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.eye(4)[torch.arange(12) % 4], r"one-hot labels: pass labels\.argmax\(1\)"),
        (torch.full((12, 4), 0.25), "mixed labels have no true class"),
        (torch.eye(4, dtype=torch.int64)[torch.arange(12) % 4], "one true class"),
        (torch.arange(12).float() % 4, "integer dtype, found .*float32"),
        (torch.ones(12, dtype=torch.bool), "integer dtype, found .*bool"),
        (torch.tensor(1), r"shape \(12,\)"),
        (torch.arange(11) % 4, "expected 12 labels.*found 11"),
        (torch.arange(13) % 4, "expected 12 labels.*found 13"),
        ([0, 1, 2, 3] * 3, r"found list; .*torch\.as_tensor"),
        (None, "found NoneType"),
        ((torch.arange(12) % 4)[:, None], r"a column of shape \(12, 1\); pass labels\.squeeze\(1\)"),
        ((torch.arange(12) % 4).to("meta"), "without values, on the meta device"),
        ((torch.arange(12) % 4).to_sparse(), "dense integer tensor"),
    ],
)
def test_labels_of_another_form_are_refused_at_once(
    model: nn.Module, batch: Batch, labels: object, message: str
) -> None:
    with CrossClassProbe(model) as probe:
        model(batch[0])
        with pytest.raises(InputError, match=message):
            probe.update(labels)
        model(batch[0])
        probe.update(batch[1])  # nothing of the refused batch was counted
        assert probe.compute().counts.tolist() == [3, 3, 3, 3]


@pytest.mark.parametrize("rows", [3, (0, 3), slice(None, None, -1)])
def test_rows_that_are_no_slice_forward_are_refused(model: nn.Module, batch: Batch, rows: object) -> None:
    with CrossClassProbe(model) as probe:
        model(batch[0])
        with pytest.raises(InputError, match=r"rows as a slice that goes forward, found .*rows=slice\(0, 32\)"):
            probe.update(batch[1], rows=rows)
        probe.update(batch[1])  # the pass is still there


def test_a_pass_of_no_samples_adds_nothing(model: nn.Module, batch: Batch) -> None:
    """As where an attack is given the images that are still right, of which none is left."""
    images, labels = batch
    with CrossClassProbe(model) as probe:
        for some in (slice(0), slice(None), slice(0), slice(6)):
            model(images[some])
            with pytest.raises(InputError, match="labels, one per sample"):
                probe.update(labels[:7])
            model(images[some])
            probe.update(labels[some])
        assert probe.compute().counts.sum() == 18
        model(images[:0])
        with pytest.raises(InputError, match="1 or more samples, found none"):
            probe.features()
        assert probe.run([batch, (images[:0], labels[:0])]).counts.sum() == 12


def test_images_of_another_scale_are_refused_behind_an_empty_batch_too(model: nn.Module, batch: Batch) -> None:
    images, labels = batch
    loader = [(images[:0], labels[:0]), (images + 200, labels)]
    with (
        CrossClassProbe(model) as probe,
        pytest.raises(InputError, match=r"first batch.*\[0, 1\]|\[0, 1\].*first batch"),
    ):
        probe.run(loader, attack=lambda given, _: given)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_any_integer_labels_will_do(model: nn.Module, batch: Batch, dtype: torch.dtype) -> None:
    with CrossClassProbe(model) as probe:
        model(batch[0])
        probe.update(batch[1].to(dtype))
        assert probe.compute().counts.tolist() == [3, 3, 3, 3]


@pytest.mark.parametrize("wrong", [4, -1, 100])
def test_labels_out_of_range_are_raised_by_compute(model: nn.Module, batch: Batch, wrong: int) -> None:
    images, labels = batch
    with CrossClassProbe(model, instances=True) as probe:
        for number in range(4):
            model(images)
            probe.update(labels if number < 2 else labels.clone().index_fill_(0, torch.tensor([5]), wrong))
        with pytest.raises(InputError, match=r"labels in 0\.\.3, found others in batch 2"):
            probe.compute()
        probe.reset()
        model(images)
        probe.update(labels)
        assert probe.compute().counts.sum() == 12


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_raised_by_compute(model: nn.Module, batch: Batch, wrong: float) -> None:
    images, labels = batch
    with CrossClassProbe(model) as probe:
        for number in range(3):
            if number == 1:
                images = images.clone()
                images[3] = wrong
            model(images)
            probe.update(labels)
        with pytest.raises(InputError, match="finite features, found NaN or infinity in batch 1"):
            probe.compute()


def test_a_single_class_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 1))
    with CrossClassProbe(model) as probe:
        model(torch.rand(5, 1, 2, 2))
        with pytest.raises(InputError, match=r"2 or more classes, found an output of shape \(5, 1\)"):
            probe.update(torch.zeros(5, dtype=torch.int64))


def test_outputs_that_are_no_logits_are_refused() -> None:
    segmenting = nn.Conv2d(3, 5, 1)
    with CrossClassProbe(segmenting) as probe:
        segmenting(torch.rand(2, 3, 4, 4))
        with pytest.raises(InputError, match=r"logits of shape \(N, K\), found .*\(2, 5, 4, 4\).*head="):
            probe.update(torch.zeros(2, dtype=torch.int64))


def test_an_unknown_head_name_is_refused_with_the_nearest() -> None:
    model = nn.ModuleDict({"classifier": nn.Linear(3, 2)})
    with pytest.raises(InputError, match="found 'clasifier'; did you mean 'classifier'"):
        CrossClassProbe(model, head="clasifier")
    assert not model.classifier._forward_hooks


@pytest.mark.parametrize(
    "options",
    [{"every": 0}, {"max_per_class": 0}, {"inputs": "dirty"}, {"every": -3}],
    ids=lambda options: str(options),
)
def test_impossible_options_are_refused(model: nn.Module, options: dict[str, object]) -> None:
    with pytest.raises(InputError):
        CrossClassProbe(model, **options)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_empty_batches_are_nothing(model: nn.Module, batch: Batch) -> None:
    images, labels = batch
    model.eval()
    with CrossClassProbe(model, instances=True) as probe:
        model(images)
        probe.update(labels[:0], rows=slice(0, 0))
        with pytest.raises(InputError, match="at least one update"):
            probe.compute()
        model(images)
        probe.update(labels)
        assert probe.compute().counts.sum() == len(labels)


def test_class_names_must_fit(model: nn.Module, batch: Batch) -> None:
    with CrossClassProbe(model, class_names=["a", "b"]) as probe:
        model(batch[0])
        probe.update(batch[1])
        with pytest.raises(InputError, match="4 class names"):
            probe.compute()


def test_data_parallel_is_refused(model: nn.Module) -> None:
    with pytest.raises(InputError, match="one process per GPU"):
        CrossClassProbe(nn.DataParallel(model))
    inside = nn.Sequential(nn.DataParallel(model))
    CrossClassProbe(inside).detach()  # where it has one device or none, it runs its module as it is
    inside[0].device_ids = [0, 1]
    with pytest.raises(InputError, match="DataParallel at '0'"):
        CrossClassProbe(inside)


def test_images_out_of_range_are_refused_before_they_are_attacked() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    loader = [(torch.rand(4, 3, 2, 2) * 255, torch.zeros(4, dtype=torch.int64))]

    def never(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the attack ran")

    with (
        CrossClassProbe(model) as probe,
        pytest.raises(InputError, match=r"images in \[0, 1\].*divide by 255"),
    ):
        probe.run(loader, never)
