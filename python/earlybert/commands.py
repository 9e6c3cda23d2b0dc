"""The commands of the command line `earlybert`. Each imports what it needs when it is chosen."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from .errors import EXIT_FAILURE, UsageError
from .training_commands import (
    make_compare_parser,
    make_finetune_parser,
    make_pretrain_parser,
    make_study_parser,
    quiet_transformers,
    run_compare,
    run_finetune,
    run_pretrain,
    run_study,
)


class Command(NamedTuple):
    """A command of the command line.

    Attributes:
        about: a line of `earlybert --help`.
        make_parser: makes the parser of the command's flags, given its `prog` and the arguments it will parse.
        run: does it, given what was parsed; returns the exit status.
        to_continue: what to do after Ctrl-C or SIGTERM, where the command can go on from where it was.
        in_processes: whether it can be started several times over by torchrun or `accelerate launch`, to be one run.
    """

    about: str
    make_parser: Callable[[str, Sequence[str]], argparse.ArgumentParser]
    run: Callable[[argparse.Namespace], int]
    to_continue: str = ""
    in_processes: bool = False


def _make_demo_parser(prog: str, argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Train a small BERT on sentences of Python's documentation: stock, with the kernels, and "
        "as a ticket with the kernels. Takes a few minutes on a CPU and downloads nothing.",
    )
    parser.add_argument("--output-dir", default="earlybert-demo", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--overwrite-output-dir", action="store_true", help="repeat runs that are there already")
    return parser


def _demo(args: argparse.Namespace) -> int:
    quiet_transformers()
    from .programs.demo import demo

    print(demo(args.output_dir, seed=args.seed, overwrite=args.overwrite_output_dir)["markdown"])
    return 0


def _make_draw_parser(prog: str, argv: Sequence[str]) -> argparse.ArgumentParser:
    from .arguments import SCOPES, SCORES, FinetuneArguments

    parser = argparse.ArgumentParser(
        prog=prog, description="Draw a ticket with other ratios, or by other scores, from a search."
    )
    parser.add_argument("gates", type=Path, help="gates.safetensors of a run, or the run's folder")
    parser.add_argument("output", type=Path, help="file for the ticket")
    shown = "default: %(default)s"
    parser.add_argument("--head-ratio", type=float, default=FinetuneArguments.head_ratio, help=shown)
    parser.add_argument("--neuron-ratio", type=float, default=FinetuneArguments.neuron_ratio, help=shown)
    parser.add_argument("--head-scope", choices=SCOPES, default="layer", help=shown)
    parser.add_argument("--neuron-scope", choices=SCOPES, default="global", help=shown)
    parser.add_argument("--score", choices=SCORES, default="gate", help=f"what units are drawn by; {shown}")
    parser.add_argument("--multiple-of", type=int, default=1, help="keep a multiple of so many neurons in a layer")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it is there")
    return parser


def _draw(args: argparse.Namespace) -> int:
    from .run_directory import check_output
    from .search.drawing import draw
    from .search.result import read_scores

    output = check_output(args.output, overwrite=args.overwrite)
    ticket = draw(
        *read_scores(args.gates, args.score),
        head_ratio=args.head_ratio,
        neuron_ratio=args.neuron_ratio,
        head_scope=args.head_scope,
        neuron_scope=args.neuron_scope,
        multiple_of=args.multiple_of,
    )
    try:
        ticket.save(output)
    except OSError as error:
        raise UsageError(f"{output}: the ticket cannot be written there: {error.strerror}") from None
    print(f"{ticket}\nwritten to {output}")
    return 0


def _make_run_parser(description: str) -> Callable[[str, Sequence[str]], argparse.ArgumentParser]:
    """Makes what makes the parser of a command on a run."""

    def make_parser(prog: str, argv: Sequence[str]) -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser(prog=prog, description=description)
        parser.add_argument("run", help="output directory of a run")
        return parser

    return make_parser


def _verify(args: argparse.Namespace) -> int:
    quiet_transformers()
    from .programs.verify import verify

    findings = verify(args.run)
    for finding in findings:
        print(f"{'ok    ' if finding.holds else 'FAILED'} {finding.what}")
    return 0 if all(finding.holds for finding in findings) else EXIT_FAILURE


def _plot(args: argparse.Namespace) -> int:
    from .programs.plots import plot

    written = plot(args.run)
    print("\n".join(map(str, written)) or "a dense run has nothing to draw")
    return 0


def _make_report_parser(prog: str, argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description="Write a page on a run, a comparison or a study.")
    parser.add_argument("folder", help="output directory of finetune, pretrain, compare, demo or study")
    return parser


def _report_page(args: argparse.Namespace) -> int:
    from .programs.report import report

    print(f"written to {report(args.folder)}")
    return 0


def _make_predict_parser(prog: str, argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description="Write what a run's model says of the texts of a file.")
    parser.add_argument("run", help="output directory of a run of finetune")
    parser.add_argument("file", help="texts in the format that the run was trained on; needs no labels")
    parser.add_argument("output", help="a line each: .jsonl (label, labels, tags or number), or .tsv as GLUE wants it")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it is there")
    return parser


def _predict(args: argparse.Namespace) -> int:
    quiet_transformers()
    from .programs.inference import predict

    count = predict(args.run, args.file, args.output, overwrite=args.overwrite, device=args.device)
    print(f"{count} predictions written to {args.output}")
    return 0


def _make_evaluate_parser(prog: str, argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description="Say how good a run's model is on a file with labels.")
    parser.add_argument("run", help="output directory of a run of finetune")
    parser.add_argument("file", help="texts and labels in the format that the run was trained on")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    return parser


def _evaluate(args: argparse.Namespace) -> int:
    quiet_transformers()
    from .programs.inference import evaluate

    for name, value in evaluate(args.run, args.file, device=args.device).items():
        print(f"{name} {value:.4f}")
    return 0


def _make_push_parser(prog: str, argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, description="Upload a run's model, its ticket and a model card to the Hugging Face hub."
    )
    parser.add_argument("run", help="output directory of a run")
    parser.add_argument("name", help="of the repository: NAME or OWNER/NAME; it is made if it is not there")
    parser.add_argument("--private", action="store_true", help="make a private repository")
    return parser


def _push(args: argparse.Namespace) -> int:
    quiet_transformers()
    from .programs.push import push

    print(f"uploaded to {push(args.run, args.name, private=args.private)}")
    return 0


def _make_export_parser(prog: str, argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, description="Write a model so that it is used without this library, with the same outputs."
    )
    parser.add_argument("model", help="output directory of a run, or a model's folder or name")
    parser.add_argument("output", help="a new folder")
    parser.add_argument(
        "--format",
        choices=("stock", "onnx", "torch"),
        required=True,
        help="stock: the dense shapes, for plain transformers; onnx: a graph of the compact widths, for ONNX Runtime; "
        "torch: the same for torch.export.load",
    )
    return parser


def _export(args: argparse.Namespace) -> int:
    quiet_transformers()
    from .programs.export import export

    print("\n".join(map(str, export(args.model, args.output, format=args.format))))
    return 0


def _make_env_parser(prog: str, argv: Sequence[str]) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=prog, description="Say what this installation has: versions, extensions, backends of each op."
    )


def _env(args: argparse.Namespace) -> int:
    from earlybert_kernels import env

    print(env.report())
    return 0


_RESUME = "the same command with --resume, and without --overwrite-output-dir, continues"
_REPEAT = "the same command without --overwrite-output-dir continues"

COMMANDS = {
    "finetune": Command(
        "search, draw and train a ticket on a task, or a baseline",
        make_finetune_parser,
        run_finetune,
        _RESUME,
        in_processes=True,
    ),
    "pretrain": Command(
        "search, draw and train a ticket on texts, or a baseline",
        make_pretrain_parser,
        run_pretrain,
        _RESUME,
        in_processes=True,
    ),
    "compare": Command(
        "run several methods over several seeds and compare them", make_compare_parser, run_compare, _REPEAT
    ),
    "study": Command(
        "run a grid of settings, tasks and seeds", make_study_parser, run_study, "the same command continues"
    ),
    "predict": Command("write what a run's model says of other texts", _make_predict_parser, _predict),
    "evaluate": Command("say how good a run's model is on another file", _make_evaluate_parser, _evaluate),
    "demo": Command("see all of it in a few minutes on a CPU", _make_demo_parser, _demo, _REPEAT),
    "draw": Command("draw a ticket with other ratios from a finished search", _make_draw_parser, _draw),
    "verify": Command(
        "check that a run's parameters are gone and its outputs right",
        _make_run_parser("Reload a run's model; check that pruned parameters are gone and outputs are right."),
        _verify,
    ),
    "plot": Command(
        "draw the pictures of a run again", _make_run_parser("Draw the pictures of a finished run again."), _plot
    ),
    "report": Command("write a page on a run, a comparison or a study", _make_report_parser, _report_page),
    "export": Command("write a model for use without this library: stock, ONNX or torch", _make_export_parser, _export),
    "push": Command("upload a run's model to the Hugging Face hub", _make_push_parser, _push),
    "env": Command("say what this installation has", _make_env_parser, _env),
}
