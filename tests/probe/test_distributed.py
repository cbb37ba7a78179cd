"""Two real processes (gloo): every rank computes the same, which is what one process computes of all batches."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist
from support.commands import environment

from . import distributed_worker as worker
from .conftest import ROUNDING

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this build of torch has no gloo"
)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank printed."""
    meeting = tmp_path_factory.mktemp("gloo") / "store"
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "probe.distributed_worker", str(rank), "2", str(meeting)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(Path(__file__).parents[1]),
        )
        for rank in range(2)
    ]
    printed = []
    try:
        for process in processes:
            output, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
            printed.append(json.loads(output.splitlines()[-1]))
    finally:
        for process in processes:
            process.kill()
    return printed


def whole(shares: tuple[list[int], list[int]], **options: Any) -> dict[str, Any]:
    return worker.measured(worker.batches(shares[0] + shares[1]), instances=True, **options).to_json()


def equal(found: Any, expected: Any) -> None:
    assert found["counts"] == expected["counts"]
    for key in ("matrix", "instance_matrix"):
        np.testing.assert_allclose(
            np.array(found[key], dtype=float), np.array(expected[key], dtype=float), atol=ROUNDING, err_msg=key
        )
    for key in ("head", "accuracy", "model_mode", "precision"):
        assert found[key] == expected[key], key


@pytest.mark.parametrize("name", ["equal", "unequal", "one empty"])
def test_every_rank_has_the_whole_result(ranks: list[dict[str, Any]], name: str) -> None:
    assert ranks[0][name] == ranks[1][name]
    equal(ranks[0][name], whole(worker.SHARES[name]))


def test_nothing_anywhere_is_an_error_everywhere(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert "at least one update" in rank["all empty"]


def test_rows_are_capped_on_every_rank(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["capped"] == ranks[1]["capped"]
    assert ranks[0]["capped"]["matrix"] == ranks[0]["unequal"]["matrix"]
    assert ranks[0]["capped"]["instance_cas"] != ranks[0]["unequal"]["instance_cas"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("too large together", "max_per_class"),
        ("bad labels", "found others in batch 1"),
        ("other head", "one shape"),
    ],
)
def test_a_fault_of_one_rank_is_raised_on_all(ranks: list[dict[str, Any]], name: str, message: str) -> None:
    assert ranks[0][name] == ranks[1][name]
    assert message in ranks[0][name]


def test_a_local_result_needs_no_other_rank(ranks: list[dict[str, Any]]) -> None:
    for rank, share in zip(ranks, worker.SHARES["unequal"], strict=True):
        equal(rank["local"], whole((share, [])))


def test_run_counts_clean_and_robust_accuracy_over_all_ranks(ranks: list[dict[str, Any]]) -> None:
    first, second = worker.SHARES["unequal"]
    expected = worker.under_attack(worker.batches(first + second)).to_json()
    for rank in ranks:
        for key in ("clean_accuracy", "robust_accuracy", "cas", "threat"):
            assert rank["under attack"][key] == pytest.approx(expected[key]), key


def test_confusions_are_those_of_all_ranks(ranks: list[dict[str, Any]]) -> None:
    first, second = worker.SHARES["unequal"]
    expected = worker.under_attack(worker.batches(first + second)).to_json()
    for rank in ranks:
        for key in ("confusion_clean", "confusion_adversarial", "class_accuracy"):
            assert rank["under attack"][key] == expected[key], key
        assert rank["under attack"]["logit_variance"] == pytest.approx(expected["logit_variance"])
        assert rank["under attack"]["mean_row_share"] == expected["mean_row_share"]


def test_records_are_in_the_order_of_images_that_were_dealt_out_in_turn(ranks: list[dict[str, Any]]) -> None:
    whole = worker.under_attack([worker.IMAGES])
    expected = {"correct": whole.correct.tolist(), "correct_clean": whole.correct_clean.tolist()}
    assert len(expected["correct"]) == 13
    for rank in ranks:
        assert rank["dealt out"] == expected
        assert rank["shares of another kind"] == {"correct": None, "correct_clean": None}


def test_distributed_data_parallel(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["trained"] == ranks[1]["trained"]
    assert sum(ranks[0]["trained"]["counts"]) == 48
    assert ranks[0]["trained"]["head"]["name"] == "2"


def test_the_metric_adds_up_too(ranks: list[dict[str, Any]]) -> None:
    pytest.importorskip("torchmetrics")
    for rank in ranks:
        assert rank["metric"] == pytest.approx(whole(worker.SHARES["unequal"])["cas"])
