"""What all tests share: where the data beside the project lie, and one thread, so that timing noise stays small."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from support.checkpoints import save_checkpoint
from support.commands import Ccf, environment, run_here
from torch.nn import functional as F

from ccf_plugin.zoo.datasets import load_data
from ccf_plugin.zoo.models import build_model

OUTSIDE = Path(__file__).parents[1] / os.environ.get("CCF_TEST_DATA", "../shared")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    # Small networks are slower on two threads than on one, and far slower where another process wants the second.
    torch.set_num_threads(1)
    os.environ.update(environment())  # for the processes that tests start
    # In the background a shell lets its commands ignore SIGINT, and the processes that they start too.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Whatever a test draws without a seed of its own is the same in each run."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def outside() -> Path:
    """The folder ``CCF_TEST_DATA`` (default ``../shared``): real CIFAR-10 in ``data``, figures in ``golden``."""
    if not (OUTSIDE / "data").is_dir():
        pytest.skip(f"{OUTSIDE / 'data'} is absent; set CCF_TEST_DATA to the folder of outside test data")
    return OUTSIDE


@pytest.fixture(scope="session")
def outside_data(outside: Path) -> Path:
    """Real CIFAR-10."""
    return outside / "data"


@pytest.fixture
def golden(outside: Path) -> dict[str, np.ndarray]:
    """A trained ResNet-18 on 1,000 images: features, labels, weight, and the figures they must give."""
    with np.load(outside / "golden" / "resnet18_cifar10_clean.npz", allow_pickle=False) as archive:
        return dict(archive)


@pytest.fixture
def ccf(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Ccf:
    """Run ``ccf`` in this process, in an empty folder: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> tuple[int, str, str]:
        code = run_here(*arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a run leaves it: ``best.safetensors`` has learnt the digits, ``last.safetensors`` learnt less."""
    folder = tmp_path_factory.mktemp("digits_run")
    options = {"width": 4, "blocks": [1, 1, 1, 1]}
    torch.manual_seed(0)
    model = build_model("narrow_preact_resnet18", num_classes=10, input_size=(1, 8, 8), options=options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train = load_data("digits", splits=("train",)).train
    assert train is not None
    metadata = {
        "model": {"name": "narrow_preact_resnet18", "options": options, "mean": None, "std": None},
        "classes": list("0123456789"),
        "data": "digits",
        "input_size": [1, 8, 8],
        "threat": {"norm": "Linf", "eps": 8 / 255},
    }
    for epoch, name in ((1, "last"), (3, "best")):
        for _ in range(epoch):
            order = torch.randperm(len(train))
            for rows in order.split(64):
                loss = F.cross_entropy(model(train.images[rows].float() / 255), train.labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        save_checkpoint(folder / f"{name}.safetensors", model, {**metadata, "epoch": epoch})
    return folder
