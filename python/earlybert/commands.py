"""The commands of the command line `earlybert`. Each imports what it needs when it is chosen."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import UsageError
from .launcher import launched_rank

if TYPE_CHECKING:
    from .arguments import RunArguments

EXIT_FAILURE = 1


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


def _make_finetune_parser(prog: str, argv: Sequence[str]) -> argparse.ArgumentParser:
    from .arguments import FinetuneArguments

    return _make_training_parser(FinetuneArguments, prog=prog)


def _finetune(namespace: argparse.Namespace) -> int:
    from .arguments import FinetuneArguments

    args = _arguments(FinetuneArguments, namespace)
    args.check()
    _quiet_transformers()
    from .programs.finetune import finetune

    return _report(finetune(args), args.output_dir)


def _make_pretrain_parser(prog: str, argv: Sequence[str]) -> argparse.ArgumentParser:
    from .arguments import PretrainArguments

    return _make_training_parser(PretrainArguments, prog=prog)


def _pretrain(namespace: argparse.Namespace) -> int:
    from .arguments import PretrainArguments

    args = _arguments(PretrainArguments, namespace)
    args.check()
    _quiet_transformers()
    from .programs.pretrain import pretrain

    return _report(pretrain(args), args.output_dir)


def _report(metrics: dict[str, Any], output_dir: str) -> int:
    if launched_rank() > 0:
        return 0
    quality = ", ".join(f"{name} {value:.4f}" for name, value in metrics["eval"].items())
    seconds = metrics["seconds"]
    parameters = metrics["parameters"]
    print(f"{metrics['task']}: {quality}")
    print(f"seconds: {seconds['total']:.1f} = search {seconds['search']:.1f} + train {seconds['train']:.1f}")
    print(f"parameters: {parameters['trained']:,} of {parameters['dense']:,}")
    print(f"written to {output_dir}")
    return 0


def _make_compare_parser(prog: str, argv: Sequence[str]) -> argparse.ArgumentParser:
    from .arguments import KERNELS, FinetuneArguments, PretrainArguments
    from .programs.compare import COMPARED_METHODS

    parser = _make_training_parser(
        PretrainArguments if "--pretrain" in argv else FinetuneArguments,
        prog=prog,
        description="Run fine-tuning, or pre-training, by several methods and seeds alike and compare quality and "
        "time. Finished runs are not repeated and interrupted ones are continued. The flags of `earlybert finetune`, "
        "or with --pretrain of `earlybert pretrain`, hold for every run; --resume changes nothing: only "
        "--overwrite-output-dir begins anew.",
        allow_abbrev=False,  # --pretrain is looked for by its name
        conflict_handler="resolve",  # --kernels takes several, and what a comparison varies is refused by name
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=COMPARED_METHODS,
        default=["dense", "earlybert", "random", "inverted"],
        help="dense-short is dense for as many epochs as a ticket",
    )
    parser.add_argument(
        "--kernels", nargs="+", choices=KERNELS, default=["off", "auto"], help="stock modules, and ours"
    )
    parser.add_argument("--pretrain", action="store_true", help="compare pre-training in place of fine-tuning")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="of all methods")
    for name in ("--method", "--seed"):
        parser.add_argument(name, action=_TakesSeveral, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return parser


class _TakesSeveral(argparse.Action):
    """Refuses a flag of one run in a comparison of several."""

    def __call__(self, parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> None:
        flag = self.option_strings[0]
        parser.error(f"{flag}: a comparison takes {flag}s")


def _compare(namespace: argparse.Namespace) -> int:
    from .arguments import FinetuneArguments, PretrainArguments

    variants = [(method, kernels) for method in namespace.methods for kernels in namespace.kernels]
    del namespace.kernels
    template = _arguments(PretrainArguments if namespace.pretrain else FinetuneArguments, namespace)
    _quiet_transformers()
    from .programs.compare import compare

    print(compare(template, variants, namespace.seeds)["markdown"])
    return 0


def _make_study_parser(prog: str, argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Run all arms of a file with all seeds on all tasks, and compare quality and time. What arms share "
        "is run once; finished runs are not repeated and interrupted ones are continued.",
    )
    parser.add_argument("file", help="the study: .yaml or .json")
    parser.add_argument(
        "--parallel",
        type=int,
        default=1,
        help="runs at a time, each with its share of the processor's threads; default: %(default)s",
    )
    return parser


def _study(args: argparse.Namespace) -> int:
    from .study_file import read_study

    plan = read_study(args.file)
    _quiet_transformers()
    from .programs.study import study

    results = study(plan, parallel=args.parallel)
    print(results["markdown"])
    return EXIT_FAILURE if results["failures"] else 0


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
    _quiet_transformers()
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
    _quiet_transformers()
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
    _quiet_transformers()
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
    _quiet_transformers()
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
    _quiet_transformers()
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
    _quiet_transformers()
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


def _make_training_parser(cls: type[RunArguments], **options: Any) -> argparse.ArgumentParser:
    from .parsing import TrainingParser  # which imports transformers

    return TrainingParser(cls, **options)


def _arguments(cls: type[RunArguments], namespace: argparse.Namespace) -> Any:
    parsed = vars(namespace)
    return cls(**{field.name: parsed[field.name] for field in fields(cls) if field.name in parsed})


def _quiet_transformers() -> None:
    """A new classifier and a progress bar for weights are no news in a program that asks for them."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


_RESUME = "the same command with --resume, and without --overwrite-output-dir, continues"
_REPEAT = "the same command without --overwrite-output-dir continues"

COMMANDS = {
    "finetune": Command(
        "search, draw and train a ticket on a task, or a baseline",
        _make_finetune_parser,
        _finetune,
        _RESUME,
        in_processes=True,
    ),
    "pretrain": Command(
        "search, draw and train a ticket on texts, or a baseline",
        _make_pretrain_parser,
        _pretrain,
        _RESUME,
        in_processes=True,
    ),
    "compare": Command(
        "run several methods over several seeds and compare them", _make_compare_parser, _compare, _REPEAT
    ),
    "study": Command(
        "run a grid of settings, tasks and seeds", _make_study_parser, _study, "the same command continues"
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
