"""The command line `earlybert`. Torch is imported only once the arguments are understood."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import Interrupted, OutputExistsError, UsageError
from .training.interrupt import terminable

if TYPE_CHECKING:
    from .arguments import RunArguments

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

#: What to do after Ctrl-C or SIGTERM, for the commands that can go on from where they were.
_CONTINUE = {
    "finetune": "the same command with --resume, and without --overwrite-output-dir, continues",
    "pretrain": "the same command with --resume, and without --overwrite-output-dir, continues",
    "compare": "the same command without --overwrite-output-dir continues",
    "demo": "the same command without --overwrite-output-dir continues",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: the arguments after the program's name; default those of the process.

    Returns:
        0 on success, 1 where `verify` finds something wrong, training diverges or a file cannot be written, 2 where
        the user asked for something that cannot be done, 130 where the user interrupted.
    """
    commands = ", ".join(_COMMANDS)
    parser = argparse.ArgumentParser(
        prog="earlybert",
        description="Find a lottery ticket in BERT early, and train only that (arXiv 2101.00063).",
        epilog="commands:\n" + "\n".join(f"  {name:10} {about}" for name, (about, _) in _COMMANDS.items())
        + "\n\nearlybert COMMAND --help says more about a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("command", choices=_COMMANDS, metavar="COMMAND", help=f"one of {commands}")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="arguments of the command")
    parser.add_argument("--version", action="version", version=f"%(prog)s {_version()}")
    argv = sys.argv[1:] if argv is None else argv
    if not argv:
        parser.print_help(sys.stderr)
        return EXIT_USAGE
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("earlybert").setLevel(logging.INFO)
    try:
        with terminable():
            status = _COMMANDS[args.command][1](args.arguments)
            sys.stdout.flush()
            return status
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
        print(f"earlybert: error: {error}", file=sys.stderr)
        return EXIT_FAILURE
    except (Interrupted, KeyboardInterrupt) as interruption:
        what = str(interruption) or "interrupted"
        found = "" if isinstance(interruption, Interrupted) else ", if there is one"
        advice = f"; {_CONTINUE[args.command]} from the last checkpoint{found}" if args.command in _CONTINUE else ""
        print(f"\nearlybert: {what}{advice}", file=sys.stderr)
        return EXIT_INTERRUPTED


def _finetune(argv: list[str]) -> int:
    from .arguments import FinetuneArguments

    args = _parse(FinetuneArguments, "earlybert finetune", argv)
    args.check()
    _quiet_transformers()
    from .programs.finetune import finetune

    return _report(finetune(args), args.output_dir)


def _pretrain(argv: list[str]) -> int:
    from .arguments import PretrainArguments

    args = _parse(PretrainArguments, "earlybert pretrain", argv)
    args.check()
    _quiet_transformers()
    from .programs.pretrain import pretrain

    return _report(pretrain(args), args.output_dir)


def _report(metrics: dict[str, Any], output_dir: str) -> int:
    quality = ", ".join(f"{name} {value:.4f}" for name, value in metrics["eval"].items())
    seconds = metrics["seconds"]
    parameters = metrics["parameters"]
    print(f"{metrics['task']}: {quality}")
    print(f"seconds: {seconds['total']:.1f} = search {seconds['search']:.1f} + train {seconds['train']:.1f}")
    print(f"parameters: {parameters['trained']:,} of {parameters['dense']:,}")
    print(f"written to {output_dir}")
    return 0


def _compare(argv: list[str]) -> int:
    from .arguments import KERNELS, FinetuneArguments, PretrainArguments
    from .programs.compare import COMPARED_METHODS

    parser = argparse.ArgumentParser(
        prog="earlybert compare",
        description="Run fine-tuning, or pre-training, by several methods and seeds alike and compare quality and "
        "time. Finished runs are not repeated and interrupted ones are continued.",
        epilog="All other flags are those of `earlybert finetune`, or `earlybert pretrain`, and hold for every run. "
        "--resume changes nothing: only --overwrite-output-dir begins anew.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=COMPARED_METHODS,
        default=["dense", "earlybert", "random", "inverted"],
        help="dense-short is dense for as many epochs as a ticket; default: all others",
    )
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=["off", "auto"], help="default: both")
    parser.add_argument("--pretrain", action="store_true", help="compare pre-training in place of fine-tuning")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="default: 1 2 3")
    own, others = parser.parse_known_args(argv)
    for argument in others:
        name = argument.partition("=")[0]
        if name in ("--method", "--seed"):
            parser.error(f"{name}: a comparison takes {name}s")
    template = _parse(PretrainArguments if own.pretrain else FinetuneArguments, "earlybert compare", others)
    _quiet_transformers()
    from .programs.compare import compare

    variants = [(method, kernels) for method in own.methods for kernels in own.kernels]
    print(compare(template, variants, own.seeds)["markdown"])
    return 0


def _demo(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="earlybert demo",
        description="Train a small BERT on sentences of Python's documentation: stock, with the kernels, and "
        "as a ticket with the kernels. Takes a few minutes on a CPU and downloads nothing.",
    )
    parser.add_argument("--output-dir", default="earlybert-demo", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--overwrite-output-dir", action="store_true", help="repeat runs that are there already")
    args = parser.parse_args(argv)
    _quiet_transformers()
    from .programs.demo import demo

    print(demo(args.output_dir, seed=args.seed, overwrite=args.overwrite_output_dir)["markdown"])
    return 0


def _draw(argv: list[str]) -> int:
    from .arguments import FinetuneArguments

    parser = argparse.ArgumentParser(
        prog="earlybert draw", description="Draw a ticket with other ratios from the gates of a search."
    )
    parser.add_argument("gates", help="gates.safetensors of a run, or the run's folder")
    parser.add_argument("output", help="file for the ticket")
    shown = "default: %(default)s"
    parser.add_argument("--head-ratio", type=float, default=FinetuneArguments.head_ratio, help=shown)
    parser.add_argument("--neuron-ratio", type=float, default=FinetuneArguments.neuron_ratio, help=shown)
    parser.add_argument("--head-scope", choices=("layer", "global"), default="layer", help=shown)
    parser.add_argument("--neuron-scope", choices=("layer", "global"), default="global", help=shown)
    parser.add_argument("--multiple-of", type=int, default=1, help="keep a multiple of so many neurons in a layer")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it is there")
    args = vars(parser.parse_args(argv))
    from .files import check_replaceable
    from .run_directory import RunDirectory
    from .search.drawing import draw, read_gates

    output, overwrite = check_replaceable(Path(args.pop("output"))), args.pop("overwrite")
    if output.exists() and not overwrite:
        raise OutputExistsError(f"{output}: there is such a file; give another path, or --overwrite to replace it")
    if RunDirectory(output.parent).owns(output):
        raise OutputExistsError(f"{output}: a file of the run in {output.parent}; give another path")
    ticket = draw(*read_gates(Path(args.pop("gates"))), **args)
    try:
        ticket.save(output)
    except OSError as error:
        raise UsageError(f"{output}: the ticket cannot be written there: {error.strerror}") from None
    print(f"{ticket}\nwritten to {output}")
    return 0


def _verify(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="earlybert verify",
        description="Reload a run's model; check that pruned parameters are gone and outputs are right.",
    )
    parser.add_argument("run", help="output directory of a run")
    args = parser.parse_args(argv)
    _quiet_transformers()
    from .programs.verify import verify

    findings = verify(args.run)
    for finding in findings:
        print(f"{'ok    ' if finding.holds else 'FAILED'} {finding.what}")
    return 0 if all(finding.holds for finding in findings) else EXIT_FAILURE


def _plot(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="earlybert plot", description="Draw the pictures of a finished run again.")
    parser.add_argument("run", help="output directory of a run")
    args = parser.parse_args(argv)
    from .programs.plots import plot

    written = plot(args.run)
    print("\n".join(map(str, written)) or "a dense run has nothing to draw")
    return 0


def _env(argv: list[str]) -> int:
    argparse.ArgumentParser(
        prog="earlybert env",
        description="Say what this installation has: versions, extensions, backends of each op.",
    ).parse_args(argv)
    from earlybert_kernels import env

    print(env.report())
    return 0


_COMMANDS: dict[str, tuple[str, Callable[[list[str]], int]]] = {
    "finetune": ("search, draw and train a ticket on a task, or a baseline", _finetune),
    "pretrain": ("search, draw and train a ticket on texts, or a baseline", _pretrain),
    "compare": ("run several methods over several seeds and compare them", _compare),
    "demo": ("see all of it in a few minutes on a CPU", _demo),
    "draw": ("draw a ticket with other ratios from a finished search", _draw),
    "verify": ("check that a run's parameters are gone and its outputs right", _verify),
    "plot": ("draw the pictures of a run again", _plot),
    "env": ("say what this installation has", _env),
}


def _parse(cls: type[RunArguments], prog: str, argv: list[str]) -> Any:
    from transformers.hf_argparser import HfArgumentParser

    parser = HfArgumentParser(cls, prog=prog)
    args, unknown = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True, look_for_args_file=False)
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return args


def _version() -> str:
    try:
        return version("earlybert-kernels")
    except PackageNotFoundError:
        return "unknown"


def _quiet_transformers() -> None:
    """A new classifier and a progress bar for weights are no news in a program that asks for them."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


if __name__ == "__main__":
    sys.exit(main())
