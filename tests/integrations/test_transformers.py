"""The callback in the Trainer of transformers, with a tiny image classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from probe import oracle

from ccf_plugin.errors import InputError

transformers = pytest.importorskip("transformers")
from ccf_plugin.integrations.transformers import CrossClassTrainerCallback  # noqa: E402

CLASSES, N = 3, 18
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


class Images(torch.utils.data.Dataset[Any]):
    def __init__(self) -> None:
        self.images = torch.rand(N, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": self.images[index], "labels": index % CLASSES}


def _model() -> Any:
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        image_size=8,
        patch_size=4,
        num_channels=1,
        id2label={0: "cat", 1: "dog", 2: "ship"},
        label2id={"cat": 0, "dog": 1, "ship": 2},
    )
    return transformers.ViTForImageClassification(config)


def _trainer(folder: Path, **options: Any) -> Any:
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=2,
        per_device_train_batch_size=6,
        per_device_eval_batch_size=7,
        eval_strategy="epoch",
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
        **{"report_to": "none", "save_strategy": "no", **options},
    )
    return transformers.Trainer(_model(), arguments, train_dataset=Images(), eval_dataset=Images())


def test_an_evaluation_has_cas_among_its_metrics_and_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline_wandb: Any
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    trainer = _trainer(tmp_path, report_to=["tensorboard", "wandb"], metric_for_best_model="eval_cas")
    callback = CrossClassTrainerCallback(trainer, inputs="clean")
    trainer.add_callback(callback)
    trainer.train()
    assert [entry["eval_cas"] for entry in trainer.state.log_history if "eval_cas" in entry][-1] == callback.result.cas
    assert trainer.state.best_metric == max(e["eval_cas"] for e in trainer.state.log_history if "eval_cas" in e)
    assert callback.result.names == ("cat", "dog", "ship")

    model = trainer.model.eval()
    images, labels = torch.stack([row["pixel_values"] for row in Images()]), [i % CLASSES for i in range(N)]
    with torch.no_grad():
        features = model.vit(images).last_hidden_state[:, 0].double().tolist()
    expected = oracle.correlation_matrix(features, model.classifier.weight.detach().double().tolist(), labels)
    np.testing.assert_allclose(callback.result.matrix, expected, atol=1e-5)

    trainer.predict(Images())  # is no evaluation
    metrics = trainer.evaluate()
    assert metrics["eval_cas"] == callback.result.cas
    assert callback.result.counts.sum() == N
    assert metrics["eval_clean_accuracy"] == callback.result.clean_accuracy
    offline_wandb.finish()
    (board,) = {path.parent for path in tmp_path.glob("**/events.out*")}
    events = accumulator.EventAccumulator(str(board))
    events.Reload()
    assert [event.step for event in events.Images("eval_C")] == [3, 6, 6]
    assert any(tag.endswith("class_accuracy/dog") for tag in events.Tags()["scalars"])
    assert len(list(tmp_path.glob("wandb/offline-run-*/files/media/images/eval_C_*.png"))) == 3
    callback.detach()
    assert not [hook for layer in model.modules() for hook in (*layer._forward_hooks, *layer._forward_pre_hooks)]


def test_an_evaluation_without_labels_is_said(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path)
    trainer.add_callback(CrossClassTrainerCallback(trainer, labels="target"))
    with pytest.raises(
        InputError, match=r"labels: expected an entry 'target' in each batch, found none in this evaluation"
    ):
        trainer.evaluate()


def test_a_label_smoother_takes_the_labels_from_the_model_and_not_from_the_probe(tmp_path: Path) -> None:
    counted = []
    for smoothing in (0.0, 0.1):
        trainer = _trainer(tmp_path, label_smoothing_factor=smoothing)
        callback = CrossClassTrainerCallback(trainer)
        trainer.add_callback(callback)
        trainer.evaluate()
        assert callback.result is not None
        counted.append(callback.result)
        callback.detach()
    assert (counted[0].counts == N // CLASSES).all()
    np.testing.assert_array_equal(counted[1].matrix, counted[0].matrix)
