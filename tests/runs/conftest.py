"""Run folders as training writes them, without training."""

from support.written_runs import write_run

__all__ = ["write_run"]
