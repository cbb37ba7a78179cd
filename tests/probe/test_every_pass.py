"""No pass is measured wrongly without a word: every pass is right, or the probe says what changed.

The table is in `changing_models`. Each row is run pass by pass (with ``reset`` between, so that the head is searched
for anew) and with all passes added up, with gradients and without; each figure is compared with the plain float64
loops of `oracle`, fed by the row's own features and weight.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ccf_plugin import CrossClassProbe, CrossClassResult, InputError, LinearHead
from ccf_plugin.probe import linear_map, trace

from . import oracle
from .changing_models import (
    ROWS,
    Entries,
    K,
    N,
    Net,
    OtherTask,
    Pass,
    Row,
    after_head,
    functional_head,
    n,
    redrawn,
    returning,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*their rows of C are NaN"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.*"),
]


def images(number: int, count: int = N) -> Tensor:
    return torch.randn(N, 1, 4, 4, generator=torch.Generator().manual_seed(number))[:count]


def true_classes(number: int, count: int = N) -> Tensor:
    """Classes in turn, some of them more often than others."""
    return ((torch.arange(count) + torch.arange(count) // 7 + number) % K)[:count]


class Truth:
    """What the passes since the last reset must give: attributions by the oracle, added up over passes."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.rows: list[oracle.Vector] = []
        self.labels: list[int] = []
        self.right = 0
        self.tolerance = 0.0

    def add(self, features: Tensor, weight: Tensor, logits: Tensor, labels: Tensor, tolerance: float) -> None:
        matrix = weight.tolist()
        self.rows += [oracle.attribution(g, matrix, y) for g, y in zip(features.tolist(), labels.tolist(), strict=True)]
        self.labels += labels.tolist()
        self.right += int((logits.argmax(1) == labels).sum())
        self.tolerance = max(self.tolerance, tolerance)

    def compare(self, result: CrossClassResult) -> None:
        classes = len(result.matrix)
        ones = [[1.0] * len(self.rows[0])] * classes
        expected = np.array(oracle.correlation_matrix(self.rows, ones, self.labels))
        np.testing.assert_allclose(result.matrix, expected, atol=self.tolerance)
        # C does not see a factor of W; the lengths of the class attributions do
        lengths = np.linalg.norm(oracle.class_attribution(self.rows, ones, self.labels), axis=1)
        np.testing.assert_allclose(
            np.linalg.norm(result.class_attribution, axis=1), lengths, rtol=10 * self.tolerance, atol=1e-7
        )
        assert result.counts.sum() == len(self.labels)
        if self.tolerance < 1e-3:  # reduced precision may change a decision
            assert result.accuracy == pytest.approx(self.right / len(self.labels))


class Trial:
    """A row's model under a probe, beside the same model without one, and a float64 twin that tells the truth."""

    def __init__(self, row: Row, mode: str) -> None:
        self.row, self.mode = row, mode
        torch.manual_seed(0)
        self.model = row.build()
        torch.manual_seed(0)
        self.plain = row.build()
        torch.manual_seed(0)
        self.twin = row.build().double()
        self.truth = Truth()

    @contextlib.contextmanager
    def gradients(self) -> Iterator[None]:
        with torch.set_grad_enabled(self.mode == "grad"):
            yield

    def change(self, step: Pass) -> None:
        for model in (self.model, self.plain, self.twin):
            torch.manual_seed(50)
            step.change(model)
        self.twin.double()

    def run(self, step: Pass, number: int) -> Tensor:
        """The pass, on all three models; the labels of its samples. Adds to the truth unless it must be refused."""
        x, labels = images(number, step.count), true_classes(number, step.count)
        outputs = []
        for model in (self.plain, self.model):
            torch.manual_seed(100 + number)
            with self.gradients():
                outputs.append(step.call(model, x.clone()))
        plain, output = outputs
        if isinstance(plain, Tensor):
            assert torch.equal(output, plain), "the probe changed the pass"
        if step.refused is None:
            torch.manual_seed(100 + number)
            logits = self.row.answer(step.call(self.twin, x.double())).detach().double()
            torch.manual_seed(100 + number)
            with torch.no_grad():
                features, weight = (part.detach().double().clone() for part in self.row.truth(self.twin, x.double()))
            rest = logits - features @ weight.T
            assert float((rest - rest[:1]).abs().max()) < 1e-7 * max(1.0, float(logits.abs().max())), "the row is wrong"
            near = self.row.answer(output).detach().double()
            tolerance = max(step.tolerance, 1e-5)
            np.testing.assert_allclose(near, logits, atol=3 * tolerance * max(1.0, float(logits.abs().max())))
            self.now = features, weight, logits, labels, step.tolerance
        step.after(self.model, output)
        step.after(self.plain, plain)
        if step.refused is None and step.after is not Pass.after:
            step.after(self.twin, logits.clone())
        return labels

    def count(self, probe: CrossClassProbe, labels: Tensor) -> CrossClassResult:
        with self.gradients():
            probe.update(labels)
        return probe.compute()


CASES = [pytest.param(row, mode, id=f"{name}, {mode}") for name, row in ROWS.items() for mode in row.modes]


def first_of(*messages: str | None) -> str | None:
    return next((message for message in messages if message is not None), None)


@pytest.mark.parametrize(("row", "mode"), CASES)
def test_each_pass_alone(row: Row, mode: str) -> None:
    trial = Trial(row, mode)
    with CrossClassProbe(trial.model, **row.options) as probe:
        for number, step in enumerate(row.passes):
            trial.change(step)
            labels = trial.run(step, number)
            count(trial, probe, labels, refused=step.refused, asks=step.asks)
            probe.reset()
            trial.truth.clear()


@pytest.mark.parametrize(("row", "mode"), CASES)
def test_passes_added_up(row: Row, mode: str) -> None:
    trial = Trial(row, mode)
    counted = False
    with CrossClassProbe(trial.model, **row.options) as probe:
        for number, step in enumerate(row.passes):
            trial.change(step)
            labels = trial.run(step, number)
            refused, asks = step.refused, step.asks
            if counted:
                refused, asks = first_of(step.after_others, refused), first_of(step.asks_after_others, asks)
            counted = count(trial, probe, labels, refused=refused, asks=asks)
            if not counted:
                probe.reset()
                trial.truth.clear()


def count(trial: Trial, probe: CrossClassProbe, labels: Tensor, *, refused: str | None, asks: str | None) -> bool:
    """Whether the pass was counted and found right; it must be refused, may be, or neither."""
    if refused is not None:
        with pytest.raises(InputError, match=refused) as refusal:
            trial.count(probe, labels)
        assert "\n" not in str(refusal.value)
        return False
    try:
        result = trial.count(probe, labels)
    except InputError as error:
        if asks is None:
            raise
        assert re.search(asks, str(error)), error  # noqa: PT017
        return False
    trial.truth.add(*trial.now)
    trial.truth.compare(result)
    return True


def classes_of(count: int = N) -> Tensor:
    return true_classes(0, count)


def curved(value: Callable[[Any, Tensor], float] = lambda m, z: m.value) -> Any:
    """A model whose logits are linear in g, or not, with nothing else to tell the passes apart."""
    torch.manual_seed(0)
    model = after_head(lambda m, z: z + value(m, z) * z.square())()
    model.on, model.value = True, 0.0
    return model


def test_a_miss_names_the_pass_the_head_and_by_how_much() -> None:
    """`update` does not wait for the device: the miss is noted there and raised by `compute`, until `reset`."""
    model = curved()
    with CrossClassProbe(model) as probe:
        for value in (0.0, 0.0, 0.3, 0.0):
            model.value = value
            model(images(0))
            probe.update(classes_of())
        for _ in range(2):
            with pytest.raises(InputError, match=r"batch 2 \(counted from 0\)") as refusal:
                probe.compute()
        assert "'head'" in str(refusal.value)
        assert re.search(r"off by \d", str(refusal.value))
        probe.reset()
        model(images(0))
        probe.update(classes_of())
        assert probe.compute().counts.sum() == N


def test_passes_that_do_not_count_are_not_checked() -> None:
    model = curved()

    def run(value: float) -> None:
        model.value = value
        model(images(0))

    with CrossClassProbe(model, every=2) as probe:
        for value in (0.0, 0.3, 0.0, 0.3):
            run(0.3)  # as the inner passes of an attack
            run(value)
            probe.update(classes_of())  # of every two, the first counts
        with probe.capture():
            run(0.3)
            run(0.0)
        run(0.3)
        probe.update(classes_of())
        assert probe.compute().counts.sum() == 3 * N
        run(0.3)
        probe.update(classes_of())
        probe.compute()
        with probe.capture():
            run(0.3)
        run(0.0)
        probe.update(classes_of())
        with pytest.raises(InputError, match="off by"):
            probe.compute()


def test_run_checks_every_batch() -> None:
    model = curved(lambda m, z: 0.3 if len(z) < N else 0.0)
    whole, last = (images(0), classes_of()), (images(1, 7), classes_of(7))
    with CrossClassProbe(model) as probe:
        assert probe.run([whole, whole]).counts.sum() == 2 * N
        with pytest.raises(InputError, match=r"off by.*batch 1\b"):
            probe.run([whole, last])
        assert probe.run([whole]).counts.sum() == N


def test_the_result_tells_where_the_head_moved() -> None:
    torch.manual_seed(0)
    model = OtherTask()
    before = []
    with CrossClassProbe(model) as probe:
        for task in ("head", "head", "rotation"):
            model.task = task
            model(images(0))
            probe.update(classes_of())
            result = probe.compute()
            before.append(result.head.history)
        assert before[:2] == [(), ()]
        assert any("rotation" in entry for entry in result.head.history)
        assert all(isinstance(entry, str) for entry in result.head.history)
        assert probe.head.name == "rotation"
        probe.reset()
        model(images(0))
        probe.update(classes_of())
        assert not probe.compute().head.history


def test_what_trains_has_no_history() -> None:
    """Weights, temperatures and biases change in every step; the head is the same."""
    torch.manual_seed(0)
    model = after_head(lambda m, z: z / m.value)()
    model.on = True
    with CrossClassProbe(model) as probe:
        for step in range(3):
            redrawn("head.weight", "head.bias", seed=step)(model)
            model.value = 1.0 + step
            model(images(step))
            probe.update(classes_of())
        assert not probe.compute().head.history


def test_a_question_lists_the_entries_and_their_shapes() -> None:
    torch.manual_seed(0)
    model = returning(lambda m, e: {"box": e["rebuilt"], "class": e["logits"], "g": e["features"], "loss": None})()
    with CrossClassProbe(model) as probe:
        model(images(0))
        with pytest.raises(InputError, match=r"output=") as refusal:
            probe.update(classes_of())
    message = str(refusal.value)
    for part in ("'box'", "'class'", "(24, 16)", "(24, 4)", "head="):
        assert part in message
    assert "'g'" not in message  # made by no linear layer


@pytest.mark.parametrize(("output", "message"), [(2, "output=2"), ("logit", "output='logit'"), (0, "head|linear")])
def test_an_entry_that_cannot_be_chosen(output: Any, message: str) -> None:
    torch.manual_seed(0)
    model = returning(lambda m, e: (e["features"], e["logits"]))()
    with CrossClassProbe(model, output=output) as probe:
        model(images(0))
        with pytest.raises(InputError, match=message):
            probe.update(classes_of())


def test_a_head_by_name_chooses_among_entries() -> None:
    torch.manual_seed(0)
    model = returning(lambda m, e: (e["embedding"], e["auxiliary"], e["logits"]))()
    with CrossClassProbe(model, head="head") as probe:
        output = model(images(0))
        probe.update(classes_of())
        result = probe.compute()
    g, weight = model.truth(images(0))
    expected = oracle.correlation_matrix(g.tolist(), weight.tolist(), classes_of().tolist())
    np.testing.assert_allclose(result.matrix, expected, atol=2e-5)
    assert result.accuracy == float((output[2].argmax(1) == classes_of()).double().mean())


def test_labels_of_another_head_are_an_error() -> None:
    """Labels that cannot be of the chosen K, never a warning about missing classes."""
    torch.manual_seed(0)
    model = Entries()
    with CrossClassProbe(model) as probe:
        model(images(0))
        probe.update(torch.arange(N) % 10)
        with warnings.catch_warnings(), pytest.raises(InputError, match=r"labels in 0\.\.3"):
            warnings.simplefilter("error")
            probe.compute()


def test_a_result_stays_as_it_was() -> None:
    torch.manual_seed(0)
    model = Net()
    with CrossClassProbe(model, instances=True) as probe:
        model(images(0))
        probe.update(classes_of())
        result = probe.compute()
        before = [part.copy() for part in (result.matrix, result.class_attribution, result.counts)]
        model(images(1))
        probe.update(classes_of())
        probe.compute()
    for part, kept in zip((result.matrix, result.class_attribution, result.counts), before, strict=True):
        np.testing.assert_array_equal(part, kept)


def test_a_function_is_no_model() -> None:
    model = Net()
    with pytest.raises(InputError, match=r"nn\.Module.*function"):
        CrossClassProbe(lambda x: model(x))


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (LinearHead(features="bodi", weight=torch.zeros(K, n)), "'body'"),
        (LinearHead(features="body", weight=torch.zeros(n, K)), r"\(4, 6\)|\(6, 4\)"),
        (LinearHead(features="body", weight=lambda m: m.nothing), "nothing"),
        (LinearHead(features="body", weight=lambda m: 3.0), "float"),
        (LinearHead(features="body.1", weight=lambda m: m.text), "off by"),
    ],
)
def test_a_head_that_is_said_wrongly(head: LinearHead, message: str) -> None:
    torch.manual_seed(0)
    model = functional_head(lambda m, g: g @ m.text.T, lambda m: m.text)()
    with pytest.raises(InputError, match=message) as refusal:
        with CrossClassProbe(model, head=head) as probe:
            model(images(0))
            probe.update(classes_of())
            probe.compute()
    assert "\n" not in str(refusal.value)


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("name", ["a gate opens to a second head on the same feature", "an early exit moves"])
def test_compiled_passes_are_checked_too(name: str) -> None:
    row = ROWS[name]
    torch.manual_seed(0)
    model = row.build()
    truth = Truth()
    with CrossClassProbe(model) as probe:
        fast = torch.compile(model, backend="eager")
        for number, step in enumerate(row.passes[:3]):
            step.change(model)
            x, labels = images(number), true_classes(number)
            logits = fast(x)
            probe.update(labels)
            g, weight = model.truth(x)
            truth.add(g.detach(), weight.detach(), logits, labels, 2e-5)
            truth.compare(probe.compute())


@pytest.mark.usefixtures("_fresh_compiler")
def test_a_head_without_a_layer_in_compiled_code() -> None:
    """Functions are not seen there: asked about, and right where it is said."""
    torch.manual_seed(0)
    model = functional_head(lambda m, g: F.linear(g, m.text), lambda m: m.text)()
    said = LinearHead(features="body", weight=lambda m: m.text)
    with CrossClassProbe(model) as asking, CrossClassProbe(model, head=said) as probe:
        fast = torch.compile(model, backend="eager")
        for number in range(2):
            redrawn("text", seed=number)(model)
            x, truth = images(number), Truth()
            logits = fast(x)
            with pytest.raises(InputError, match="LinearHead"):
                asking.update(classes_of())
            probe.update(classes_of())
            truth.add(*(part.detach() for part in model.truth(x)), logits, classes_of(), 2e-5)
            truth.compare(probe.compute())
            probe.reset()


WRONG_WITHOUT_THE_CHECK = (
    "a zero-initialised second branch learns",
    "an exit for each sample",
    "a subset of the classes that changes",
    "a subset with one class twice",
    "a last token for each sample, at first",
    "one token, then their mean",
    "a mean weighted over tokens",
)


@pytest.mark.parametrize("name", WRONG_WITHOUT_THE_CHECK)
def test_the_table_fails_without_the_check(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows owe their right figures to the check of each pass: where nothing is ever missed they are wrong."""

    def unchecked(*args: Any) -> linear_map.Reading:
        reading = linear_map.read(*args)
        return replace(reading, missed=torch.zeros_like(reading.missed))

    row = ROWS[name]
    test_each_pass_alone(row, "no_grad")
    monkeypatch.setattr(trace, "read", unchecked)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        test_each_pass_alone(row, "no_grad")
