"""The command line `earlybert`. Torch is imported only once the arguments are understood."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

from .commands import COMMANDS, Command
from .errors import EXIT_FAILURE, ElsewhereError, Interrupted, LostProcessError, UsageError
from .launcher import check_alone, launched_rank
from .training.interrupt import terminable

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: the arguments after the program's name; default those of the process.

    Returns:
        0 on success, 1 where `verify` finds something wrong, training diverges or a file cannot be written, 2 where
        the user asked for something that cannot be done, 130 where the user interrupted.
    """
    parser = _make_parser()
    argv = sys.argv[1:] if argv is None else argv
    if not argv:
        parser.print_help(sys.stderr)
        return EXIT_USAGE
    try:
        args = parser.parse_args(argv)
    except UsageError as error:  # in a file of settings
        print(f"earlybert: error: {error}", file=sys.stderr)
        return EXIT_USAGE
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("earlybert").setLevel(logging.INFO)
    command: Command = COMMANDS[args.command]
    try:
        if not command.in_processes:
            check_alone(f"earlybert {args.command}")
        with terminable():
            status = command.run(args)
            sys.stdout.flush()
            return status
    except ElsewhereError:
        return EXIT_USAGE
    except UsageError as error:
        print(f"earlybert: error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except BrokenPipeError:  # by a reader that has seen enough, such as head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILURE
    except OSError as error:
        where = "" if error.filename is None else f"{error.filename}: "
        print(f"earlybert: error: {where}{error.strerror or error}", file=sys.stderr)
        return EXIT_FAILURE
    except FloatingPointError as error:
        if launched_rank() == 0:  # all processes have met it
            print(f"earlybert: error: {error}", file=sys.stderr)
        return EXIT_FAILURE
    except LostProcessError as error:
        advice = f"{command.to_continue}, with as many processes or others, from the last checkpoint, if there is one"
        print(f"earlybert: error: {error}; {advice}", file=sys.stderr)
        return EXIT_FAILURE
    except (Interrupted, KeyboardInterrupt) as interruption:
        what = str(interruption) or "interrupted"
        found = "" if isinstance(interruption, Interrupted) else ", if there is one"
        advice = f"; {command.to_continue} from the last checkpoint{found}" if command.to_continue else ""
        if launched_rank() == 0:
            print(f"\nearlybert: {what}{advice}", file=sys.stderr)
        return EXIT_INTERRUPTED


class _Deferred:
    """Stands for a command's parser until it is chosen: making that of a training program imports transformers."""

    def __init__(self, prog: str, command: Command) -> None:
        self._prog = prog
        self._command = command

    def parse_known_args(
        self, argv: Sequence[str], namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """What argparse asks of the parser of a command. What it does not know is an error of this command."""
        return self._command.make_parser(self._prog, argv).parse_args(argv, namespace), []


class _PrintCompletion(argparse.Action):
    """Prints what a shell completes this program's arguments by, without running it, and ends."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: Any = None) -> NoReturn:
        try:
            import shtab
        except ImportError:
            parser.error(f"{option} needs a package: pip install 'earlybert-kernels[completion]'")
        commands = {name: command.make_parser(f"{parser.prog} {name}", []) for name, command in COMMANDS.items()}
        whole = _make_parser(lambda command, prog: commands[prog.split()[-1]])
        for each in commands.values():
            for action in each._actions:
                if action.nargs != 0 and action.choices is None and action.type in (None, str, Path):
                    action.complete = shtab.FILE  # type: ignore[attr-defined]  # for all one knows
        print(shtab.complete(whole, shell=values))
        parser.exit()


def _make_parser(parser_class: Any = _Deferred) -> argparse.ArgumentParser:
    """
    Args:
        parser_class: makes the parser of a command, given that and its `prog`.
    """
    parser = argparse.ArgumentParser(
        prog="earlybert",
        description="Find a lottery ticket in BERT early, and train only that (arXiv 2101.00063).",
        epilog="earlybert COMMAND --help says more about a command.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {_version()}")
    parser.add_argument(
        "--print-completion",
        choices=("bash", "zsh", "fish", "tcsh"),
        metavar="SHELL",
        action=_PrintCompletion,
        help="print the script by which bash, zsh, fish or tcsh completes commands and flags",
    )
    commands = parser.add_subparsers(
        title="commands",
        dest="command",
        metavar="COMMAND",
        required=True,
        parser_class=parser_class,
    )
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.about, command=command)
    return parser


def _version() -> str:
    try:
        return version("earlybert-kernels")
    except PackageNotFoundError:
        return "unknown"


if __name__ == "__main__":
    sys.exit(main())
