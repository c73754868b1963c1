"""The command's words: operands, sizes, options, help, errors of usage."""

from __future__ import annotations

import errno
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from nova_mp import errors
from nova_mp.cli import main as cli_main
from nova_mp.cli.command import Verb, VerbGroup, first_sentence
from nova_mp.cli.operands import Operand, parse
from nova_mp.cli.output import Column, ListStyle, table
from nova_mp.cli.report import Refused, Report, problem_of

Done = tuple[int, str, str]


def run(capsys: pytest.CaptureFixture[str], *args: str) -> Done:
    capsys.readouterr()
    code = cli_main.main(list(args))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def all_verbs() -> list[tuple[str, click.Command]]:
    found = []
    for section in cli_main.VERBS.values():
        for name in section:
            command = importlib.import_module(f"nova_mp.cli.{name}").command
            if isinstance(command, VerbGroup):
                found += [(f"{name} {sub}", verb) for sub, verb in command.commands.items()]
            else:
                found.append((name, command))
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("demo:/a/b", Operand("demo", None, "/a/b")),
        ("demo:", Operand("demo", None, "/")),
        ("demo:/", Operand("demo", None, "/")),
        ("demo://a/../b/", Operand("demo", None, "/b")),
        ("demo:/../..", Operand("demo", None, "/")),
        ("demo@7:/a", Operand("demo", "7", "/a")),
        ("demo@a:b@c:/x:/y", Operand("demo", "a:b@c", "/x:/y")),
        ("d.e_m-o1:/a b", Operand("d.e_m-o1", None, "/a b")),
    ],
)
def test_operands(text: str, expected: Operand) -> None:
    assert parse(text) == expected
    assert parse(text, local=True) == expected


@pytest.mark.parametrize("text", ["./a:b", "/etc/x", "-", "plain", "../demo:/x", "", ".hidden:/x"])
def test_local_operands(text: str) -> None:
    assert parse(text, local=True) == Operand(None, None, text)
    with pytest.raises(ValueError, match="names no file in an arena"):
        parse(text)


def test_a_missing_slash_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for local in (False, True):
        with pytest.raises(ValueError, match=r"begin with a slash: demo:/a\b"):
            parse("demo:a", local=local)
    (tmp_path / "demo:a").touch()
    assert parse("demo:a", local=True) == Operand(None, None, "demo:a")


def test_operands_print_as_they_are_written() -> None:
    for text in ("demo:/a/b", "demo@first:/a", "demo:/"):
        assert str(parse(text)) == text
    assert str(parse("demo:/a").child("b")) == "demo:/a/b"
    assert [parse(text).name for text in ("demo:/a/b", "demo:/")] == ["b", ""]


def test_every_verb_is_listed_with_its_own_help() -> None:
    for section in cli_main.VERBS.values():
        for name, text in section.items():
            command = importlib.import_module(f"nova_mp.cli.{name}").command
            assert first_sentence(command).rstrip(".") == text.rstrip("."), name


@pytest.mark.parametrize(("name", "verb"), all_verbs(), ids=str)
def test_help_of_every_verb(
    name: str, verb: click.Command, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, *name.split(), "--help")
    assert (code, err) == (0, "")
    assert f"Usage: nova-mp {name}" in out
    assert isinstance(verb, Verb)
    assert verb.examples and "Examples:" in out
    assert max(map(len, out.splitlines())) <= 100
    assert "--json" in out
    for option in verb.params:
        assert not isinstance(option, click.Option) or option.help, f"{option.name} has no help"


@pytest.mark.parametrize("name", ["ls", "du", "snapshot list", "status"])
def test_lists_take_h_and_p(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, *name.split(), "--help")
    assert "-H " in out
    assert "-p " in out


def test_alone_it_says_what_to_type_first(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys)
    assert code == 0
    assert out.index("nova-mp mkfs demo") < out.index("nova-mp start demo") < out.index("cp -r")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from nova_mp.version import __version__

    assert run(capsys, "--version")[:2] == (0, f"nova-mp {__version__}\n")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["lss"], ["there is no command 'lss'", "did you mean ls?"]),
        (["frobnicate"], ["there is no command", "nova-mp --help"]),
        (["ls"], ["missing argument", "nova-mp ls --help"]),
        (["ls", "demo:x"], ["begin with a slash: demo:/x"]),
        (["ls", "demo"], ["'demo' names no file in an arena: write demo:/"]),
        (["ls", "--nonsense", "demo:/"], ["no such option"]),
        (["mkfs", "a b"], ["bad arena name 'a b'"]),
        (["mkfs", "demo", "--size", "lots"], ["bad size 'lots'"]),
        (["mkfs", "demo", "--cpus", "0"], ["0 is not in the range"]),
        (["start", "demo:/"], ["names a file; here goes the name of an arena"]),
        (["mkdir", "-m", "9", "demo:/x"], ["'9' is no mode"]),
        (["completion", "tcsh"], ["tcsh"]),
        (["completion"], ["Choose from: bash, zsh, fish"]),
        (["freeze", "demo", "--timeout", "nan"], ["nan is no time to wait"]),
        (["freeze", "demo", "--timeout", "0"], ["more than 0"]),
        (["status", "demo", "--watch", "inf"], ["inf is no time to wait"]),
        (["status", "demo", "--watch", "x"], ["'x' is no number of seconds"]),
        (["snapshot", "wait", "demo", "--timeout", "-1"], ["at least 0"]),
        (["snapshot", "frobnicate"], ["no such command"]),
    ],
)
def test_usage_errors(
    args: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, *args)
    assert (code, out) == (2, "")
    assert err.startswith("nova-mp: ")
    assert "\n  hint: " in err
    for word in words:
        assert word in err


def test_usage_errors_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "ls", "--json", "demo:x")
    value = json.loads(out)
    assert (code, value["exit_code"], value["output_version"]) == (2, 2, 1)
    assert "begin with a slash" in value["errors"][0]["reason"]
    assert "begin with a slash" in err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "completion", shell)
    assert code == 0
    assert f"_NOVA_MP_COMPLETE={shell}_complete" in out


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.EngineNotRunning("r", "h"), 1),
        (errors.ArenaExists("r", "h"), 1),
        (errors.VersionMismatch("r", "h"), 1),
        (errors.EngineRunning("r", "h"), 4),
        (errors.ArenaBusy("r", "h"), 4),
        (errors.Frozen("r", "h"), 4),
        (errors.NotEnoughMemory("r", "h"), 5),
        (OSError(28, "No space left on device", "/x"), 5),
        (errors.CorruptArena("r", "h"), 6),
        (errors.SlotsExhausted("r", "h"), 75),
        (errors.Timeout("r", "h"), 75),
        (Refused("r", "h", 4), 4),
        (ValueError("r"), 2),
    ],
)
def test_exit_codes(error: Exception, code: int) -> None:
    assert problem_of(error, "do", "demo:/x").exit_code == code


def test_errors_name_verb_object_reason_and_remedy() -> None:
    problem = problem_of(
        FileNotFoundError(2, "No such file or directory", "/a/b"), "list", "d:/a/b"
    )
    assert problem.text() == (
        "nova-mp: cannot list 'd:/a/b': no such file or directory\n"
        "  hint: see what is there: nova-mp ls d:/a"
    )
    other = problem_of(FileNotFoundError(2, "No such file or directory", "/c"), "copy", "d:/a")
    assert "'d:/a': /c: no such" in other.text()
    assert problem_of(OSError(28, "No space left on device", "/a"), "write", "d:/a").hint
    assert "\x1b" not in problem_of(OSError(5, "bad", "/\x1b[2J"), "read", "d:/\x1b[2J").text()


@pytest.mark.parametrize(
    ("verb", "what", "number", "words"),
    [
        ("make", "d:/a/b", errno.ENOENT, "nova-mp mkdir -p d:/a/b"),
        ("make", "d:/a", errno.EEXIST, "nova-mp stat d:/a"),
        ("move", "d:/a", errno.EINVAL, "into itself"),
        ("unfreeze", "d", errno.EINVAL, "nova-mp status d"),
        ("take a snapshot of", "d", errno.EEXIST, "nova-mp snapshot list d"),
        ("copy", "d@s:/a", errno.EBUSY, "nova-mp status d"),
        ("copy", "a/b", errno.ENOENT, "there: ls a"),
        ("copy", "/a:/b", errno.EACCES, "ls -ld"),
        ("copy", "a", errno.ENOSPC, "df"),
    ],
)
def test_hints_fit_what_the_error_is_about(verb: str, what: str, number: int, words: str) -> None:
    hint = problem_of(OSError(number, os.strerror(number)), verb, what).hint
    assert words in hint


def test_every_error_has_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report("cat", "print")
    with report.attempt("d:/a"):
        raise OSError(errno.EDOM, "Strange")
    with report.attempt("d:/a"):
        raise ValueError("stranger still")
    assert all(problem.hint for problem in report.problems)
    assert capsys.readouterr().err.count("hint: ") == 2


def test_tables_are_aligned_or_bare() -> None:
    columns = (Column("SIZE", number=True), Column("NAME"))
    rows = [("1", "one"), ("1000", "b")]
    lines = [click.unstyle(line) for line in table(columns, rows, ListStyle())]
    assert lines == ["SIZE  NAME", "   1  one", "1000  b"]
    assert table(columns, rows, ListStyle(header=False)) == ["1\tone", "1000\tb"]
    assert ListStyle().size(1536) == "1.5 KiB"
    assert ListStyle(exact=True).size(1536) == "1536"
    assert ListStyle(exact=True).time(1_500_000_000_000_000_007) == "1500000000.000000007"


def processor_seconds(*words: str) -> float:
    """What a command takes of a processor: on a busy machine its waiting says nothing about it."""
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return used.ru_utime + used.ru_stime


def test_help_is_quick() -> None:
    # 100 ms on an idle machine, and 60 of them are what cannot be avoided.
    quick = min(processor_seconds("-m", "nova_mp.cli.main", "--help") for _ in range(5))
    bare = min(processor_seconds("-c", "import click, json, tempfile") for _ in range(5))
    assert quick < bare + 0.15


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from nova_mp.cli.main import main; main(['--help'])\n"
        "print(sorted({'zmq', 'msgpack', 'rich', 'numpy', 'nova_mp.core.fs'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert out.stdout.splitlines()[-1] == "[]"


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        command = [sys.executable, "-m", "nova_mp.cli.main", "--help"]
        done = subprocess.run(command, check=False, stdout=pipe, stderr=subprocess.PIPE, text=True)
    assert done.stderr == ""


@pytest.mark.parametrize("closed", ["1", "0 1", "0 1 2"])
def test_streams_that_are_closed(closed: str) -> None:
    shut = " ".join(f"{fd}>&-" for fd in closed.split())
    for words, code in (("--help", 0), ("status", 0), ("ls", 2), ("ls --json nowhere:/", 1)):
        command = f'"{sys.executable}" -m nova_mp.cli.main {words} {shut}'
        done = subprocess.run(["sh", "-c", command], check=False, capture_output=True, text=True)
        assert (done.returncode, "Traceback" in done.stderr) == (code, False), (words, done)


def test_output_that_cannot_be_written() -> None:
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "nova_mp.cli.main", "--help"]
        done = subprocess.run(command, check=False, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 5
    assert "cannot write 'standard output': no space left on device" in done.stderr
    assert "remove files" not in done.stderr
    assert "Traceback" not in done.stderr
