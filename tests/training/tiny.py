"""For the tests in ``gpu``, which still look here."""

from support.runs import Quiet, assert_same_run, tiny

__all__ = ["Quiet", "assert_same_run", "tiny"]
