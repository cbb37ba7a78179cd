"""RobustBench's table with files where its own would lie: what is measured, what cannot be had, and going on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ccf_plugin.errors import InputError, UnavailableError
from ccf_plugin.measuring import leaderboard
from ccf_plugin.measuring.leaderboard import Row, measure_leaderboard, rank_correlation, read_leaderboard
from ccf_plugin.measuring.pictures import draw_leaderboard
from ccf_plugin.measuring.settings import Settings
from ccf_plugin.measuring.subject import load_subject
from ccf_plugin.zoo.models import load_model
from ccf_plugin.zoo.robustbench_table import entries, published_accuracies

FIRST, SECOND = "Rade2021Helper_R18_extra", "Rade2021Helper_R18_ddpm"  # PreActResNet-18s, small enough for tests
DAMAGED, ABSENT = "Rice2020Overfitting", "Wong2020Fast"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights where RobustBench keeps its own, a damaged file, and images like CIFAR's."""
    folder = tmp_path_factory.mktemp("zoo")
    (folder / "cifar10" / "Linf").mkdir(parents=True)
    for seed, name in enumerate((FIRST, SECOND)):
        torch.manual_seed(seed)
        model = load_model(f"robustbench:{name}", pretrained=False).model
        torch.save(model.state_dict(), folder / "cifar10" / "Linf" / f"{name}.pt")
    (folder / "cifar10" / "Linf" / f"{DAMAGED}.pt").write_bytes(b"PK\x03\x04 cut short")
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    np.savez(folder / "images.npz", x=images, y=np.arange(20) % 10)
    return folder


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr("gdown.download", fail)


def settings_in(place: Path) -> Settings:
    return Settings.of(data=f"npz:{place / 'images.npz'}", steps=1, batch_size=20, model_dir=place)


def test_every_entry_has_published_figures() -> None:
    """The README that the installed package carries names exactly the models that its zoo has."""
    for dataset, threat in (("cifar10", "Linf"), ("cifar10", "L2"), ("cifar100", "Linf"), ("imagenet", "Linf")):
        _, _, names = entries(dataset, threat)
        figures = published_accuracies(dataset, threat)
        assert set(figures) == set(names), (dataset, threat)
        assert all(0 <= one.autoattack_accuracy < one.clean_accuracy < 1 for one in figures.values())
    assert published_accuracies("cifar10", "Linf")["Carmon2019Unlabeled"].autoattack_accuracy == 0.5953
    assert published_accuracies("cifar10", "L2")["Rade2021Helper_R18_ddpm"].clean_accuracy == 0.9057
    assert published_accuracies("cifar10", "corruptions") == {}
    assert entries("CIFAR10", "linf")[:2] == ("cifar10", "Linf")
    with pytest.raises(InputError, match="expected threat Linf or L2, found corruptions"):
        entries("cifar10", "corruptions")


def test_what_can_be_had_is_measured_and_the_rest_is_listed(place: Path, tmp_path: Path) -> None:
    file, settings = tmp_path / "board.csv", settings_in(place)
    given = list(measure_leaderboard("cifar10", "linf", settings, file, only=(FIRST, DAMAGED, ABSENT)))
    rows = {row.model: row for row in read_leaderboard(file)}
    assert rows.keys() == {FIRST, DAMAGED, ABSENT}
    assert {row.model: row for row, _ in given} == rows
    assert sorted(left for _, left in given) == [0, 1, 2]

    subject = load_subject(f"robustbench:{FIRST}", settings)
    expected = subject.measure(instances=True)
    row = rows[FIRST]
    assert (row.cas, row.instance_cas) == (expected.cas, expected.instance_cas)
    assert row.cas_excess == expected.cas_excess
    assert (row.input_size, rows[ABSENT].input_size) == ("3×32×32", "")
    older, lines = tmp_path / "older.csv", file.read_text(encoding="utf-8").splitlines()
    for missing in ({"input_size"}, {"input_size", "cas_excess"}):
        lines = [line.rpartition(",")[0] for line in lines]
        older.write_text("\n".join(lines) + "\n", encoding="utf-8")
        left = {
            name: replace(row, **{field: getattr(Row(""), field) for field in missing}) for name, row in rows.items()
        }
        assert {row.model: row for row in read_leaderboard(older)} == left
    assert (row.robust_accuracy, row.clean_accuracy) == (expected.robust_accuracy, expected.clean_accuracy)
    assert (row.attack, row.steps, row.images, row.unavailable) == ("PGD", 1, 20, "")
    assert (row.published_clean_accuracy, row.published_autoattack_accuracy) == (0.8902, 0.5767)
    assert "damaged" in rows[DAMAGED].unavailable
    assert "ConnectionError: no network" in rows[ABSENT].unavailable
    assert rows[ABSENT].cas is None
    assert rows[ABSENT].published_autoattack_accuracy is not None


def test_the_chosen_head_is_measured(place: Path, tmp_path: Path) -> None:
    settings = settings_in(place).with_values(head="linea")
    ((row, _),) = measure_leaderboard("cifar10", "Linf", settings, tmp_path / "board.csv", only=(FIRST,))
    assert "expected head to name a layer" in row.unavailable


def test_an_interrupted_table_goes_on(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, settings, both = tmp_path / "board.csv", settings_in(place), (FIRST, SECOND)
    loaded: list[str] = []

    def load(name: str, chosen: Settings) -> Any:
        loaded.append(name.rpartition("/")[2])
        if len(loaded) == 2:
            raise KeyboardInterrupt
        return load_subject(name, chosen)

    monkeypatch.setattr(leaderboard, "load_subject", load)
    with pytest.raises(KeyboardInterrupt):
        list(measure_leaderboard("cifar10", "Linf", settings, file, only=both))
    (kept,) = read_leaderboard(file)
    given = list(measure_leaderboard("cifar10", "Linf", settings, file, only=both))
    assert [row.model for row, _ in given] == [loaded[1]]
    assert loaded[1:] == [loaded[1]] * 2
    assert [row.model for row in read_leaderboard(file)] == loaded[:2]
    assert read_leaderboard(file)[0] == kept
    assert list(measure_leaderboard("cifar10", "Linf", settings, file, only=both)) == []

    before = file.read_bytes()
    for name, other in {"steps": settings.with_values(steps=2), "limit": settings.with_values(limit=9)}.items():
        with pytest.raises(InputError, match=f"expected rows measured as now, found others .*{name}"):
            measure_leaderboard("cifar10", "Linf", other, file, only=both)
    assert file.read_bytes() == before


def test_only_local_files(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gdown.download", lambda *_, **__: pytest.fail("a download"))
    given = measure_leaderboard(
        "cifar10", "Linf", settings_in(place), tmp_path / "b.csv", only=(SECOND, ABSENT), local=True
    )
    rows = {row.model: row for row, _ in given}
    assert rows[SECOND].cas is not None
    absent = place / "cifar10" / "Linf" / f"{ABSENT}.pt"
    assert rows[ABSENT].unavailable == f"no file {absent}, and only local files are wanted"


def test_a_model_that_fails_does_not_stop_the_others(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str, chosen: Settings) -> Any:
        if name.endswith(FIRST):
            raise RuntimeError("CUDA out\nof memory")
        return load_subject(name, chosen)

    monkeypatch.setattr(leaderboard, "load_subject", load)
    list(measure_leaderboard("cifar10", "Linf", settings_in(place), tmp_path / "b.csv", only=(FIRST, SECOND)))
    rows = {row.model: row for row in read_leaderboard(tmp_path / "b.csv")}
    assert rows[FIRST].unavailable == "RuntimeError: CUDA out of memory"
    assert rows[SECOND].cas is not None


def test_what_is_wrong_for_all_is_said_before_the_first(place: Path, tmp_path: Path) -> None:
    settings, file = settings_in(place), tmp_path / "b.csv"
    wrong: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (InputError, "absent.npz", {"data": "npz:absent.npz"}),
        (UnavailableError, "cifar10", {"data": None, "data_root": tmp_path}),
        (InputError, "steps", {"steps": 0}),
        (InputError, "limit: expected at least 1", {"limit": 0}),
    ]
    for kind, text, changes in wrong:
        with pytest.raises(kind, match=text):
            measure_leaderboard("cifar10", "Linf", settings.with_values(**changes), file)
    with pytest.raises(InputError, match="did you mean 'Wong2020Fast'"):
        measure_leaderboard("cifar10", "Linf", settings, file, only=["Wong2020Fats"])
    for content in ("", "model,cas\nx,3\n", "\x00"):
        file.write_text(content)
        with pytest.raises(InputError, match="expected a leaderboard"):
            measure_leaderboard("cifar10", "Linf", settings, file)
        assert file.read_text() == content


def _made(count: int) -> list[Row]:
    return [
        Row(f"Author20{i}Title_WRN-{i}-10", 0.8, 0.4 + 0.002 * i, 10 + i * (-1) ** i, published_autoattack_accuracy=0.4)
        for i in range(count)
    ]


@pytest.mark.parametrize("count", [1, 15, 61])
def test_the_scatter_holds_every_model_and_names_some(count: int) -> None:
    rows = [replace(row, attack="PGD", steps=20) for row in _made(count)]
    ax = draw_leaderboard(rows, "title").axes[0]
    points, rings = (collection.get_offsets() for collection in ax.collections[1:3])
    np.testing.assert_allclose(points, [(row.cas, row.robust_accuracy * 100) for row in rows])  # type: ignore
    np.testing.assert_allclose(rings[:, 1], 40)
    assert 1 <= len(ax.texts) <= 15


def test_the_rank_correlation_by_hand() -> None:
    rows = [Row("", robust_accuracy=accuracy, cas=cas) for accuracy, cas in ((0.1, 3.0), (0.2, 9.0), (0.3, 5.0))]
    assert rank_correlation(rows) == pytest.approx(0.5)  # 1 − 6 (0 + 1 + 1) / (3 · 8)
    assert np.isnan(rank_correlation(rows[:2]))
