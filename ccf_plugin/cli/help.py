"""Help as plain text: a command's options in groups, and every description whole at any width of the terminal."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup

# Panels of options, in the order in which help shows them; an option names its own by ``rich_help_panel``.
MODEL, DATA, ATTACK, PROBE, OUTPUT = "Model", "Data", "Attack", "Measurement", "Output"
_OTHERS = "Options"


class Command(TyperCommand):
    """A command whose help lists its options by their panels."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments, then each panel's options."""
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": []}
        groups |= {panel: [] for panel in (MODEL, DATA, ATTACK, PROBE, OUTPUT)}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                is_option = parameter.param_type_name == "option"
                panel = getattr(parameter, "rich_help_panel", None) or _OTHERS
                groups.setdefault(panel if is_option else "Arguments", []).append(record)
        for title, records in groups.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


class Group(TyperGroup):
    """The commands, each with its whole description."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Names and descriptions."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [(name, " ".join((command.help or "").split())) for name, command in commands if command is not None]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
