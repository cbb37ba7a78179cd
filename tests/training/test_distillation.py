"""Teachers: their share of the loss, their ramp, and what they are refused for."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import Quiet, contents, interrupted, tiny
from torch import Tensor, nn

from ccf_plugin.errors import InputError
from ccf_plugin.training.averaging import WeightAverage
from ccf_plugin.training.distillation import Teacher, check_teachers, distilled, load_teacher
from ccf_plugin.training.loop import train
from ccf_plugin.training.objectives import StepOutput
from ccf_plugin.training.recipe import AverageSection, DistillSection

DIGITS = tuple("0123456789")
IMAGES = torch.zeros(4, 1, 2, 2)


def _teacher(logits: Tensor, weight: float, **options: Any) -> Teacher:
    class Says(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return logits * 1

    return Teacher(Says(), DistillSection(teacher="t", weight=weight, **options))


def _output() -> StepOutput:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    return StepOutput(torch.tensor(1.25, dtype=torch.float64), logits)


def _softened(logits: Tensor, temperature: float) -> list[list[float]]:
    rows = [[math.exp(value / temperature) for value in row] for row in logits.tolist()]
    return [[value / sum(row) for value in row] for row in rows]


def test_the_total_is_the_documented_sum_with_two_teachers() -> None:
    output = _output()
    targets = [torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(k)) for k in (1, 2)]
    teachers = [_teacher(targets[0], 0.1, temperature=2.0), _teacher(targets[1], 0.6, temperature=4.0)]
    expected = (1 - 0.7) * 1.25
    for target, weight, temperature in zip(targets, (0.1, 0.6), (2.0, 4.0), strict=True):
        p, q = _softened(target, temperature), _softened(output.logits, temperature)
        divergences = [sum(a * math.log(a / b) for a, b in zip(x, y, strict=True)) for x, y in zip(p, q, strict=True)]
        expected += weight * temperature**2 * sum(divergences) / 4
    assert math.isclose(float(distilled(output, IMAGES, teachers, epoch=1)), expected, rel_tol=1e-12)


def test_without_weight_the_loss_is_untouched_and_no_teacher_runs() -> None:
    output = _output()
    assert distilled(output, IMAGES, [], 1) is output.loss

    class Never(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise AssertionError("the teacher ran")

    assert distilled(output, IMAGES, [Teacher(Never(), DistillSection(teacher="t", weight=0.0))], 1) is output.loss


def test_gradients_reach_the_student_alone() -> None:
    output = _output()
    target = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    student = output.logits.clone().requires_grad_()
    distilled(StepOutput(student.sum(), student), IMAGES, [_teacher(target, 0.5)], 1).backward()
    assert student.grad is not None
    assert target.grad is None


def test_the_ramp_is_algorithm_2s() -> None:
    teacher = _teacher(torch.zeros(4, 3), 0.8, ramp=[2, 6], weight_after=1.0)
    assert [teacher.weight(epoch) for epoch in range(1, 9)] == pytest.approx([0, 0, 0.2, 0.4, 0.6, 1, 1, 1])
    assert _teacher(torch.zeros(4, 3), 0.8, ramp=[2, 6]).weight(7) == 0.8
    assert _teacher(torch.zeros(4, 3), 0.8).weight(1) == 0.8


def test_an_average_teaches_only_once_there_is_one() -> None:
    """Before its first move it holds the untrained weights."""
    model = nn.Linear(2, 3)
    average = WeightAverage(model, AverageSection(kind="swa", start_epoch=2))
    teacher = Teacher(average.averaged, DistillSection(teacher="average", weight=0.5), average)
    weights = []
    for epoch in (1, 2, 3, 4):
        weights.append(teacher.weight(epoch))
        average.after_step(model, epoch, is_last=True)
    assert weights == [0, 0, 0, 0.5]


def test_the_students_gradient_passes_gradcheck() -> None:
    output, target = _output(), torch.randn(4, 3, dtype=torch.float64)
    teachers = [_teacher(target, 0.3, temperature=2.0), _teacher(-target, 0.6)]

    def total(student: Tensor) -> Tensor:
        return distilled(StepOutput(student.square().sum(), student), IMAGES, teachers, 1)

    assert torch.autograd.gradcheck(total, (output.logits.requires_grad_(),))


def test_every_missing_teacher_is_named_with_what_makes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    specs = ["runs/preact_standard", "average", "runs/mine", "timm:resnet18", "else/preact_linf", "there"]
    with pytest.raises(InputError) as caught:
        check_teachers([DistillSection(teacher=spec, weight=0.1) for spec in specs], Path("runs/out"))
    remedies = [line.split("; ")[1] for line in str(caught.value).splitlines()]
    assert remedies == [
        "train preact_standard first, with out='runs/preact_standard'",
        "train RECIPE first, with out='runs/mine'",
        "train preact_linf first, with out='else/preact_linf'",
    ]


def test_a_run_cannot_be_its_own_teacher(tmp_path: Path) -> None:
    run = train(tiny("optim.epochs=1"), tmp_path / "run", Quiet()).folder
    before = contents(run)
    taught = tiny("optim.epochs=1", f"distill=[{{teacher='{run}', weight=0.5}}]")
    with pytest.raises(InputError, match="expected a teacher outside the run's own folder"):
        train(taught, run, Quiet(), force=True)
    assert contents(run) == before


def test_a_run_does_not_go_on_with_a_teacher_of_other_weights(tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    train(tiny("optim.epochs=1"), teacher, Quiet())
    kept = contents(teacher)
    taught = tiny("optim.epochs=2", f"distill=[{{teacher='{teacher}', weight=0.5}}]")
    interrupted(taught, tmp_path / "run")
    before = contents(tmp_path / "run")
    train(tiny("optim.epochs=1", "seed=7"), teacher, Quiet(), force=True)
    with pytest.raises(
        InputError, match=r"expected the teachers that .* was trained with, found others \(distill\[0\]\)"
    ):
        train(taught, tmp_path / "run", Quiet(), resume=True)
    assert contents(tmp_path / "run") == before
    for name, content in kept.items():
        (teacher / name).write_bytes(content)
    assert train(taught, tmp_path / "run", Quiet(), resume=True).is_finished


def test_a_teacher_for_other_images_is_refused(tmp_path: Path) -> None:
    run = train(tiny("optim.epochs=1"), tmp_path / "run", Quiet()).folder
    section, of = DistillSection(teacher=str(run), weight=0.5), {"device": torch.device("cpu"), "precision": "float32"}
    with pytest.raises(InputError, match="expected a teacher for images of 1×16×16, found one for 1×8×8"):
        load_teacher(section, classes=DIGITS, input_size=(1, 16, 16), **of)  # type: ignore[arg-type]
    assert load_teacher(section, classes=DIGITS, input_size=(1, 8, 8), **of).weight(1) == 0.5  # type: ignore[arg-type]


def test_a_teacher_whose_classes_stand_in_another_order_is_refused(tmp_path: Path) -> None:
    run = train(tiny("optim.epochs=1"), tmp_path / "run", Quiet()).folder
    section, size = DistillSection(teacher=str(run), weight=0.5), (1, 8, 8)
    rest: dict[str, Any] = {"input_size": size, "device": torch.device("cpu"), "precision": "float32"}
    with pytest.raises(InputError, match="expected a teacher of the data's classes 9, 8, 7, …, found 0, 1, 2, …"):
        load_teacher(section, classes=DIGITS[::-1], **rest)
    load_teacher(section, classes=[f"class {label}" for label in DIGITS], **rest)  # its own are numbers, not names


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("python:torch.nn:Flatten", "expected a teacher of 10 classes, found 64"),
        ("timm:resnet", "timm has no model"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(
    spec: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        load_teacher(
            DistillSection(teacher=spec, weight=0.5),
            classes=DIGITS,
            input_size=(1, 8, 8),
            device=torch.device("cpu"),
            precision="float32",
        )
