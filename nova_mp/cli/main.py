"""The `nova-mp` command: finds the verb, and turns whatever happens into an exit code.

A verb's module is imported when the verb is used: `nova-mp --help` needs none of them.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import io
import os
import signal
import sys
from typing import NoReturn

import click
from click.shell_completion import CompletionItem

from nova_mp.cli import report
from nova_mp.errors import NovaError
from nova_mp.version import __version__

# Each verb with the first sentence of its help, by what it is about. A test compares them.
VERBS: dict[str, dict[str, str]] = {
    "Arenas": {
        "mkfs": "Make an arena.",
        "destroy": "Remove an arena and all that it holds.",
        "start": "Start an arena's engine.",
        "stop": "Stop an arena's engine, leaving the arena clean.",
        "status": "Show the arenas, or one of them in detail.",
        "keygen": "Make keys for access by TCP.",
        "crash": "Cut an arena's power, as far as software can.",
    },
    "Files": {
        "ls": "List directories and files.",
        "cat": "Print files.",
        "cp": "Copy files and trees, into, out of and between arenas.",
        "mv": "Rename files, or move them between places.",
        "rm": "Remove files, with -r trees.",
        "mkdir": "Make directories.",
        "stat": "Show the attributes of files.",
        "tree": "Show a directory tree.",
        "du": "Show what files and directories take.",
    },
    "Snapshots": {
        "snapshot": "Create, list, show and delete snapshots.",
        "freeze": "Hold all changes until unfreeze.",
        "unfreeze": "Let changes go on after a freeze.",
    },
    "Inspection": {
        "fsck": "Check an arena's structure.",
        "dump": "Print on-media structures.",
        "bench": "Run benchmarks.",
        "completion": "Print a shell's completion script.",
    },
}

# A shell's completion script sets this; then the answer is completions, and no verb is run.
COMPLETE_VARIABLE = "_NOVA_MP_COMPLETE"

FIRST_STEPS = """\
nova-mp: a file system in shared memory, with snapshots, for many processes.

Start here:
  nova-mp mkfs demo --size 256MiB --cpus 2     make an arena, called demo
  nova-mp start demo                           start its engine in the background
  nova-mp cp -r /etc/apt demo:/apt             copy something into it
  nova-mp ls -l demo:/apt                      look at it
  nova-mp snapshot create demo --name first    keep it as it is now
  nova-mp rm -r demo:/apt
  nova-mp ls demo@first:/apt                   the snapshot has it still
  nova-mp stop demo                            stop; the arena stays until: nova-mp destroy demo

All commands: nova-mp --help. One of them: nova-mp COMMAND --help."""


class Program(click.Group):
    """The command without a verb: lists the verbs without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for section in VERBS.values() for name in section]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        module = importlib.import_module(f"nova_mp.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), 1)
            hint = f"did you mean {near[0]}?" if near else "see them all: nova-mp --help"
            raise NoSuchVerb(args[0], hint)
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        found = [
            CompletionItem(name, help=text)
            for section in VERBS.values()
            for name, text in section.items()
            if name.startswith(incomplete)
        ]
        return found + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section, verbs in VERBS.items():
            with formatter.section(section):
                formatter.write_dl(list(verbs.items()))


class NoSuchVerb(click.UsageError):
    """The user typed a verb that there is not."""

    def __init__(self, verb: str, hint: str) -> None:
        super().__init__(f"there is no command '{verb}'")
        self.hint = hint


class Terminated(KeyboardInterrupt):
    """SIGTERM came; what an interrupt would clean up is cleaned up."""


@click.group(
    cls=Program,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="nova-mp", message="%(prog)s %(version)s")
@click.pass_context
def program(ctx: click.Context) -> None:
    """A file system in shared memory, with snapshots, for many processes.

    Files in an arena are written NAME:/path, files in a snapshot of it NAME@SNAPSHOT:/path, where
    SNAPSHOT is an id or a name.
    """
    if ctx.invoked_subcommand is None:
        click.echo(FIRST_STEPS)
        from nova_mp.core import segment

        if names := segment.arena_names():
            click.echo(f"\nArenas on this machine: {', '.join(names)}. More: nova-mp status.")


def main(args: list[str]) -> int:
    """Run the command with `args`; returns its exit code."""
    if COMPLETE_VARIABLE in os.environ:
        importlib.import_module("nova_mp.cli.completion").install()
    try:
        return _run(args)
    except report.OutputFailed as error:
        _drop_output()
        if error.closed:
            # Whoever read our output has seen enough.
            return report.DONE
        problem = report.output_problem(error)
        click.echo(problem.text(), err=True)
        return problem.exit_code


def _run(args: list[str]) -> int:
    try:
        code = program.main(args, prog_name="nova-mp", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else report.DONE
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else error.format_message(), err=True)
        return report.USAGE
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "nova-mp"
        return _usage(args, path, error)
    except (click.Abort, KeyboardInterrupt) as error:
        # click makes an Abort of what it sees.
        if isinstance(error.__cause__ or error, Terminated):
            click.echo("nova-mp: terminated", err=True)
            return report.TERMINATED
        click.echo("nova-mp: interrupted", err=True)
        return report.INTERRUPTED
    except ImportError as error:
        click.echo(f"nova-mp: cannot load a part of the package: {error}", err=True)
        click.echo("  hint: build the native core: make build, or pip install again", err=True)
        return report.FAILED
    except (OSError, NovaError) as error:
        # What concerns an operand is told by its verb.
        problem = report.problem_of(error, "run", "nova-mp " + " ".join(args[:1]))
        click.echo(problem.text(), err=True)
        return problem.exit_code
    except MemoryError:
        click.echo("nova-mp: out of memory\n  hint: take less at once, or free some", err=True)
        return report.FAILED


def _usage(args: list[str], path: str, error: click.UsageError) -> int:
    reason = _sentence(error.format_message())
    hint = getattr(error, "hint", f"see: {path} --help")
    if isinstance(error, click.NoSuchOption) and error.option_name == "--json":
        hint = f"it comes after the command: {path} COMMAND --json"
    click.echo(f"nova-mp: {reason}\n  hint: {hint}", err=True)
    outcome = report.Report(path.partition(" ")[2], "run", as_json="--json" in args)
    outcome.problems.append(report.Problem("run", " ".join(args), reason, hint, report.USAGE))
    return outcome.finish()


def _drop_output() -> None:
    # Or Python would try to write the rest at exit, and complain again.
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _sentence(message: str) -> str:
    # Choices come one a line, with tabs.
    message = " ".join(message.split()).rstrip(".")
    return message[:1].lower() + message[1:]


def _terminate(number: int, frame: object) -> NoReturn:
    # Once: a second signal must not cut short what the first one made us clean up.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated


def _prepare_streams() -> None:
    """Make three streams that can be used, whatever this process was started with."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            # Closed: what is printed is wanted by nobody, and there is nothing to be read. The
            # lowest number that is free is this one.
            os.open(os.devnull, os.O_WRONLY)
    if sys.stdin is None:
        sys.stdin = os.fdopen(0, closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)
    buffered = sys.stdout is None or not sys.stdout.line_buffering
    # File names that are not UTF-8 come as surrogates, and leave as the bytes they were.
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(report.OutputStream(1, "w", closefd=False)),
        encoding=sys.stdout.encoding if sys.stdout else None,
        errors="surrogateescape",
        line_buffering=not buffered,
    )
    if hasattr(sys.stderr, "reconfigure"):
        sys.stderr.reconfigure(errors="surrogateescape")


def run() -> NoReturn:
    """The entry point: exits with the command's code."""
    signal.signal(signal.SIGTERM, _terminate)
    _prepare_streams()
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    run()
