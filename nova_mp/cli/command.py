"""How a verb is declared: its options in common, its examples, its report."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import click

from nova_mp.cli.output import ListStyle
from nova_mp.cli.report import Report


class Verb(click.Command):
    """A command whose help ends with examples."""

    def __init__(self, *args: Any, examples: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = inspect.cleandoc(examples)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.examples:
            with formatter.section("Examples"):
                for line in self.examples.splitlines():
                    formatter.write(f"{'':{formatter.current_indent}}{line}\n")


class VerbGroup(click.Group):
    """A verb with verbs of its own; its help gives each one's first sentence in full."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, first_sentence(command)) for name, command in self.commands.items()]
            )

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


def first_sentence(command: click.Command) -> str:
    """The first line of a command's help."""
    return inspect.cleandoc(command.help or "").partition("\n")[0]


def verb(
    name: str,
    doing: str,
    *,
    examples: str,
    subject: str | None = None,
    lists: bool = False,
    json_option: bool = True,
) -> Callable[[Callable[..., dict[str, Any] | None]], Verb]:
    """Make a command of a function.

    `name` is what the user types after `nova-mp`, `doing` the verb in `cannot VERB`. The function
    gets a Report first, then its options; with `lists` also `style`, from -H and -p. What it
    returns is the JSON object's contents. An error that the function lets through counts as a
    problem of the parameter `subject`.
    """

    def decorate(function: Callable[..., dict[str, Any] | None]) -> Verb:
        @functools.wraps(function)
        def body(**params: Any) -> int:
            report = Report(name, doing, as_json=bool(params.pop("as_json", False)))
            if lists:
                style = ListStyle(not params.pop("no_header"), params.pop("exact"))
                params["style"] = style
            if subject is None:
                return report.finish(function(report, **params))
            payload = None
            with report.attempt(str(params[subject])):
                payload = function(report, **params)
            return report.finish(payload)

        wrapped: Callable[..., Any] = body
        if json_option:
            wrapped = click.option(
                "--json", "as_json", is_flag=True, help="Print one JSON object instead of text."
            )(wrapped)
        if lists:
            wrapped = click.option(
                "-p", "exact", is_flag=True, help="Exact numbers: bytes, and times in seconds."
            )(wrapped)
            wrapped = click.option(
                "-H", "no_header", is_flag=True, help="No header, and tabs between the columns."
            )(wrapped)
        last = name.rpartition(" ")[2]
        return click.command(last, cls=Verb, examples=examples)(wrapped)

    return decorate
