"""The commands that train. Each imports what it needs when it is chosen."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from .errors import EXIT_FAILURE
from .launcher import launched_rank

if TYPE_CHECKING:
    from .arguments import RunArguments


def make_finetune_parser(prog: str, argv: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of `earlybert finetune`."""
    from .arguments import FinetuneArguments

    return _make_training_parser(FinetuneArguments, prog=prog)


def run_finetune(namespace: argparse.Namespace) -> int:
    """Does `earlybert finetune`."""
    from .arguments import FinetuneArguments

    args = _arguments(FinetuneArguments, namespace)
    args.check()
    quiet_transformers()
    from .programs.finetune import finetune

    return _report(finetune(args), args.output_dir)


def make_pretrain_parser(prog: str, argv: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of `earlybert pretrain`."""
    from .arguments import PretrainArguments

    return _make_training_parser(PretrainArguments, prog=prog)


def run_pretrain(namespace: argparse.Namespace) -> int:
    """Does `earlybert pretrain`."""
    from .arguments import PretrainArguments

    args = _arguments(PretrainArguments, namespace)
    args.check()
    quiet_transformers()
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


def make_compare_parser(prog: str, argv: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of `earlybert compare`."""
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


def run_compare(namespace: argparse.Namespace) -> int:
    """Does `earlybert compare`."""
    from .arguments import FinetuneArguments, PretrainArguments

    variants = [(method, kernels) for method in namespace.methods for kernels in namespace.kernels]
    del namespace.kernels
    template = _arguments(PretrainArguments if namespace.pretrain else FinetuneArguments, namespace)
    quiet_transformers()
    from .programs.compare import compare

    print(compare(template, variants, namespace.seeds)["markdown"])
    return 0


def make_study_parser(prog: str, argv: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of `earlybert study`."""
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


def run_study(args: argparse.Namespace) -> int:
    """Does `earlybert study`."""
    from .study_file import read_study

    plan = read_study(args.file)
    quiet_transformers()
    from .programs.study import study

    results = study(plan, parallel=args.parallel)
    print(results["markdown"])
    return EXIT_FAILURE if results["failures"] else 0


def _make_training_parser(cls: type[RunArguments], **options: Any) -> argparse.ArgumentParser:
    from .parsing import TrainingParser  # which imports transformers

    return TrainingParser(cls, **options)


def _arguments(cls: type[RunArguments], namespace: argparse.Namespace) -> Any:
    parsed = vars(namespace)
    return cls(**{field.name: parsed[field.name] for field in fields(cls) if field.name in parsed})


def quiet_transformers() -> None:
    """A new classifier and a progress bar for weights are no news in a program that asks for them."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
