"""Page: what `--help` shows of a command, in the order of a manual page.

    what it does ─▶ Examples ─▶ options, by what they are for ─▶ Exit status

A docstring's last paragraph behind a ``\\b`` has the examples.

Guarantees: every option is shown, and once.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["STATUS", "Page"]

STATUS = {
    "0": "all well",
    "1": "something failed; stderr says what",
    "2": "a wrong command line; nothing was begun",
    "130": "stopped by Ctrl-C",
}


class Page(click.Command):
    """A command whose help is a page.

    Args:
        *args: As of a click.Command.
        groups: {title: names of options}; the others come last.
        status: {exit status: what it says}, beside what all commands have.
        **kwargs: As of a click.Command.
    """

    def __init__(
        self,
        *args: Any,
        groups: Mapping[str, Sequence[str]] | None = None,
        status: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.groups = dict(groups or {})
        self.status = {**STATUS, **(status or {})}

    def _parts(self) -> tuple[str, list[str]]:
        """The text, and the examples."""
        text, _, examples = inspect.cleandoc(self.help or "").rpartition("\b\n")
        if not text:
            return examples, []
        return text, [line.strip() for line in examples.splitlines() if line.strip()]

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        text, examples = self._parts()
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(text.rstrip())
        if examples:
            with formatter.section("Examples"):
                for line in examples:
                    formatter.write(f"{' ' * formatter.current_indent}{line}\n")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        left = {
            param.name: param for param in self.get_params(ctx) if isinstance(param, click.Option)
        }
        for title, names in (*self.groups.items(), ("Options", tuple(left))):
            params = [left.pop(name) for name in names if name in left]
            rows = [row for param in params if (row := param.get_help_record(ctx)) is not None]
            if rows:
                with formatter.section(title if title != "Options" or not self.groups else "Other"):
                    formatter.write_dl(rows)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Exit status"):
            formatter.write_dl(sorted(self.status.items(), key=lambda row: int(row[0])))
