"""The callback in a real Lightning Trainer, with TensorBoard's and Weights & Biases' loggers."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from probe import oracle
from torch import Tensor, nn

from ccf_plugin.errors import InputError

lightning = pytest.importorskip("lightning")
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger  # noqa: E402

from ccf_plugin.integrations.lightning import CrossClassCallback  # noqa: E402

pytestmark = pytest.mark.slow

CLASSES, N = 3, 24
NAMES = ["cat", "dog", "ship"]


class Classifier(lightning.LightningModule):  # type: ignore[misc, name-defined, unused-ignore]
    """Its steps call the network, not itself."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, CLASSES))

    def training_step(self, batch: Any, number: int) -> Tensor:
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def validation_step(self, batch: Any, number: int) -> None:
        self.network(batch[0])

    test_step = validation_step

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _data(count: int = N) -> tuple[Tensor, Tensor]:
    return torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(1)), torch.arange(count) % CLASSES


def _loader() -> Any:
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*_data()), batch_size=10)


def _trainer(folder: Path, callback: Any, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return lightning.Trainer(
            **{"max_epochs": 2, "logger": False, **options},
            callbacks=[callback],
            accelerator="cpu",
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )


def _expected(module: Classifier) -> np.ndarray:
    images, labels = _data()
    with torch.no_grad():
        features = module.network[:-1](images).double()
    weight = module.network[-1].weight.detach().double()
    return np.array(oracle.correlation_matrix(features.tolist(), weight.tolist(), labels.tolist()))


@pytest.mark.filterwarnings("ignore")
def test_validation_is_measured_logged_and_drawn(tmp_path: Path, offline_wandb: Any) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    callback = CrossClassCallback("network", inputs="clean", class_names=NAMES)
    boards, wandb_logger = TensorBoardLogger(tmp_path), WandbLogger(save_dir=tmp_path, offline=True)
    module = Classifier()
    trainer = _trainer(tmp_path, callback, logger=[boards, wandb_logger])
    trainer.fit(module, _loader(), _loader())
    assert callback.result is not None
    assert callback.result.counts.sum() == N  # the last epoch's, without the sanity check's
    np.testing.assert_allclose(callback.result.matrix, _expected(module), atol=1e-5)
    assert float(trainer.callback_metrics["val_cas"]) == pytest.approx(callback.result.cas, rel=1e-6)
    assert float(trainer.callback_metrics["val_clean_accuracy"]) == pytest.approx(callback.result.clean_accuracy)
    assert not [hook for layer in module.modules() for hook in layer._forward_hooks]

    events = accumulator.EventAccumulator(boards.log_dir)
    events.Reload()
    assert [event.step for event in events.Images("val_C")] == [3, 6]
    assert events.Images("val_C")[0].encoded_image_string.startswith(b"\x89PNG")
    share = callback.result.to_pandas("classes")["cas"]["dog"]
    assert events.Scalars("val_class_cas/dog")[-1].value == pytest.approx(share, rel=1e-6)
    assert events.Scalars("val_cas")[-1].value == pytest.approx(callback.result.cas, rel=1e-6)
    wandb_logger.experiment.finish()
    assert len(list(tmp_path.glob("wandb/offline-run-*/files/media/images/val_C_*.png"))) == 2


@pytest.mark.parametrize(("on", "prefix"), [("train", "train"), ("test", "test")])
@pytest.mark.filterwarnings("ignore")
def test_other_stages(on: Any, prefix: str, tmp_path: Path) -> None:
    callback = CrossClassCallback("network", on=on, labels=lambda batch: batch[1])
    module = Classifier()
    trainer = _trainer(tmp_path, callback, max_epochs=1)
    trainer.fit(module, _loader(), _loader())
    trainer.test(module, _loader(), verbose=False)
    assert callback.result is not None
    assert callback.result.counts.sum() == N
    assert callback.result.accuracy is not None


@pytest.mark.filterwarnings("ignore")
def test_a_model_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="on: expected one of train, validation, test, found 'val'"):
        CrossClassCallback(on="val")  # type: ignore[arg-type]
    for name, found in (("", "found none; choose one of network"), ("net", "in Classifier, found 'net'")):
        with pytest.raises(InputError, match=f"model: .*{found}"):
            _trainer(tmp_path, CrossClassCallback(name)).fit(Classifier(), _loader(), _loader())
