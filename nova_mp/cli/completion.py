"""nova-mp completion: print a shell's completion script.

Bash takes a colon for the end of a word, so `demo:/da` reaches a completion function as `/da`. Its
script here hands over the line as it was typed, and takes off what bash has already got.
"""

from __future__ import annotations

import os
from typing import Any

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    add_completion_class,
    get_completion_class,
)

from nova_mp.cli.command import verb
from nova_mp.cli.report import Report

_BASH = """\
%(complete_func)s() {
    local IFS=$'\\n' type value word before response
    response=$(env NOVA_MP_LINE="${COMP_LINE:0:$COMP_POINT}" \
        %(complete_var)s=bash_complete "$1" 2>/dev/null)
    word="${COMP_LINE:0:$COMP_POINT}"
    word="${word##* }"
    before=""
    if [[ $word == *:* && $COMP_WORDBREAKS == *:* ]]; then
        before="${word%%"${word##*:}"}"
    fi
    COMPREPLY=()
    for completion in $response; do
        IFS=',' read -r type value <<< "$completion"
        if [[ $type == file ]]; then
            compopt -o default
        elif [[ $type == plain ]]; then
            [[ $value == */ ]] && compopt -o nospace
            printf -v value %%q "${value#"$before"}"
            COMPREPLY+=("$value")
        fi
    done
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""


class _Bash(BashComplete):
    """Completion for bash 4.4 and later."""

    source_template = _BASH

    @staticmethod
    def _check_version() -> None:
        # Asking bash for its version takes longer than the script, which any bash can read.
        return None

    def get_completion_args(self) -> tuple[list[str], str]:
        line = os.environ.get("NOVA_MP_LINE", "")
        words = click.shell_completion.split_arg_string(line)[1:]
        if line[-1:].isspace() or not words:
            return words, ""
        return words[:-1], words[-1]

    def format_completion(self, item: CompletionItem[Any]) -> str:
        return f"{item.type},{item.value}"


def install() -> None:
    """Let the script and the answers to it be ours for bash."""
    add_completion_class(_Bash, "bash")


@verb(
    "completion",
    "print the completion script for",
    examples="""
        eval "$(nova-mp completion bash)"         in ~/.bashrc
        eval "$(nova-mp completion zsh)"          in ~/.zshrc, after compinit
        nova-mp completion fish > ~/.config/fish/completions/nova-mp.fish
    """,
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(report: Report, shell: str) -> dict[str, Any]:
    """Print a shell's completion script.

    It completes commands, options, names of arenas, and paths in arenas that run.
    """
    from nova_mp.cli.main import COMPLETE_VARIABLE, program

    install()
    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(program, {}, "nova-mp", COMPLETE_VARIABLE).source()
    report.say(script.rstrip("\n"))
    return {"shell": shell, "script": script}
