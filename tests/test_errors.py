"""What an error says, line by line."""

import pickle

import pytest

from ccf_plugin.errors import CCFError, Fault, InputError, check_at_least, counted


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (Fault("limit", "at least 1", "0"), "limit: expected at least 1, found 0"),
        (Fault("", "a model", "none", "name one"), "expected a model, found none; name one"),
        (
            Fault("", "a file", "a dir", "choose another {out}"),
            "expected a file, found a dir; choose another out",
        ),
        (Fault("attack.eps", "0 to 1", "{8}", "see {}"), "attack.eps: expected 0 to 1, found {8}; see {}"),
    ],
)
def test_a_fault_is_one_line(fault: Fault, line: str) -> None:
    assert str(fault) == line
    assert InputError(fault).args == (line,)


def test_a_reader_may_know_the_parameters_by_other_names() -> None:
    fault = Fault("batch_size", "{limit} or less", "batch_size {limit}", "lower {batch_size} or {limit}")
    assert fault.render(lambda name: f"<{name}>") == (
        "<batch_size>: expected <limit> or less, found batch_size {limit}; lower <batch_size> or <limit>"
    )


def test_an_error_keeps_its_faults_and_prints_a_line_of_each() -> None:
    fault = Fault("seed", "a number", "'\n'")
    error = CCFError("one", fault)
    assert error.faults == ("one", fault)
    assert str(error) == "one\nseed: expected a number, found '\\n'"
    assert error.lines(str.upper) == ["one", "SEED: expected a number, found '\\n'"]


def test_a_value_that_is_too_small_is_named() -> None:
    check_at_least(1, limit=None, count=1)
    with pytest.raises(InputError, match=r"^count: expected at least 2, found 1$"):
        check_at_least(2, limit=2, count=1, steps=0)


def test_an_error_crosses_processes() -> None:
    error = pickle.loads(pickle.dumps(InputError(Fault("seed", "a number", "none"), "another")))
    assert error.args == ("seed: expected a number, found none", "another")


@pytest.mark.parametrize("line", ["x" * 5000, Fault("key", "y" * 3000, "z" * 3000)])
def test_a_long_line_keeps_both_its_ends(line: str | Fault) -> None:
    (printed,) = CCFError(line).args
    assert len(printed) < 1300
    assert (printed[:20], printed[-20:]) == (str(line)[:20], str(line)[-20:])


def test_a_count_and_its_noun_agree() -> None:
    assert [counted(number, "model") for number in (0, 1, 2)] == ["0 models", "1 model", "2 models"]
