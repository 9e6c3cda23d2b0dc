"""What the hub shows of a run's model: what it is, how good and how fast, and how it was made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # which its documentation shows

from earlybert_kernels.models import family_of_type

from ..files import read_json
from ..run_directory import FREE_ARGUMENTS, INPUTS, RunDirectory
from ..tasks import get_task
from ..tasks.metrics import EVAL_LOSS
from .forward_time import ForwardTime

#: What the hub calls the job of a model, by the class of transformers that reads it.
_PIPELINES = {
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
    "AutoModelForQuestionAnswering": "question-answering",
    "AutoModelForMaskedLM": "fill-mask",
}
#: By the method: how the units that the model has were chosen.
_CHOSEN = {
    "earlybert": "those that a lottery ticket keeps, which was drawn early in a search with a gate on each of them",
    "random": "as many as a drawn ticket keeps in each layer, but chosen at random: it is a control",
    "inverted": "as many as a drawn ticket keeps in each layer, but those with the smallest gates: it is a control",
}


def model_card(directory: RunDirectory, name: str, forward: ForwardTime | None) -> ModelCard:
    """What a finished run's model is, how good and how fast it is, how it is loaded and how it was made.

    Args:
        directory: the run's folder.
        name: of the repository.
        forward: how fast it is, of a pruned model; None of another.

    Raises:
        UsageError: the run is not finished.
    """
    metrics = directory.read_metrics()
    base, task = metrics["model"], metrics["task"]
    auto_class = get_task(task).model_class.__name__
    base = base if _is_of_hub(base) else None
    dataset = metrics["arguments"].get("dataset_name") or task
    pipeline = _PIPELINES.get(auto_class)
    data = ModelCardData(
        base_model=base,
        library_name="earlybert-kernels",
        pipeline_tag=pipeline,
        tags=[
            _family(directory),
            "earlybert",
            *([] if metrics["ticket"] is None else ["pruning", "lottery-ticket"]),
        ],
        model_name=name.split("/")[-1],
        eval_results=[
            EvalResult(
                task_type=pipeline or task,
                dataset_type=dataset,
                dataset_name=dataset,
                metric_type=metric,
                metric_value=value,
            )
            for metric, value in metrics["eval"].items()
            if not metric.startswith(EVAL_LOSS)  # which is no metric of the hub's leaderboards
        ],
    )
    parts = [f"# {data.model_name}", _about(metrics, base), _quality(metrics)]
    if metrics["ticket"] is not None:
        parts.append(_widths(metrics, directory.ticket_plot.name))
    if forward is not None:
        parts.append(_speed(forward))
    parts.append(_loading(name, auto_class, compact=metrics["ticket"] is not None))
    parts.append(_recipe(metrics))
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")


def _family(directory: RunDirectory) -> str:
    """The model type of the run's model, or of the stock one that it was cut from: `bert`."""
    found: str = family_of_type(read_json(directory.model / "config.json")["model_type"]).model_type
    return found


def _is_of_hub(model: str) -> bool:
    try:
        validate_repo_id(model)
    except HFValidationError:
        return False
    return not Path(model).exists()


def _about(metrics: dict[str, Any], base: str | None) -> str:
    origin = f"`{base}`" if base else "A model"
    verb = "pre-trained on texts (`mlm`)" if metrics["task"] == "mlm" else f"fine-tuned on `{metrics['task']}`"
    trained, dense = (metrics["parameters"][which] for which in ("trained", "dense"))
    if metrics["ticket"] is None:
        return f"{origin}, {verb}: the whole model, {trained:,} parameters, of which nothing was pruned."
    return (
        f"{origin}, {verb} by EarlyBERT ([arXiv 2101.00063](https://arxiv.org/abs/2101.00063)). Of its attention heads "
        f"and feed-forward neurons it has {_CHOSEN[metrics['method']]}. The others were removed, and those that were "
        f"left were trained from the weights that the model began with: {trained:,} of {dense:,} parameters."
    )


def _quality(metrics: dict[str, Any]) -> str:
    examples = metrics["examples"]
    counts = ", ".join(f"{count:,} ({split})" for split, count in examples["eval"].items())
    rows = [f"| {metric} | {value:.4f} |" for metric, value in metrics["eval"].items()]
    head = f"Evaluated on {counts} examples; trained on {examples['train']:,}, with seed {metrics['seed']}."
    return "\n".join(["## Quality", "", head, "", "| metric | value |", "|---|---|", *rows])


def _widths(metrics: dict[str, Any], picture: str) -> str:
    ticket = metrics["ticket"]
    layers = zip(*(ticket[name] for name in ("heads", "heads_of", "neurons", "neurons_of")), strict=True)
    rows = [f"| {i} | {h} of {all_h} | {n} of {all_n} |" for i, (h, all_h, n, all_n) in enumerate(layers)]
    head = "What is left of each layer; `ticket.json` says which units those are."
    image = f"![The heads that each layer keeps, and how many neurons]({picture})"
    return "\n".join(["## Widths", "", head, "", image, "", "| layer | heads | neurons |", "|---|---|---|", *rows])


def _loading(name: str, auto_class: str, *, compact: bool) -> str:
    code = [
        *(["import earlybert_kernels as ek  # by which uneven layers are read"] if compact else []),
        f"from transformers import {auto_class}, AutoTokenizer",
        "",
        f'model = {auto_class}.from_pretrained("{name}")',
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
    ]
    lines = ["## Loading", "", "```python", *code, "```"]
    if compact:
        lines += [
            "",
            "Its layers have different widths, for which transformers has no classes: install `earlybert-kernels`. "
            "`ek.convert(model)` makes it fast, and `ek.to_stock(model)` a stock model of the original shapes with "
            "the same outputs.",
        ]
    return "\n".join(lines)


def _speed(forward: ForwardTime) -> str:
    machine = forward.machine
    where = machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} threads"
    rows = [
        f"| the stock model, of the dense shapes | 1 ({forward.stock_ms:.0f} ms) |",
        f"| this one, as transformers loads it | {forward.loaded:.2f} |",
        f"| the same after `ek.convert` | {forward.converted:.2f} |",
    ]
    head = (
        f"A forward of {forward.batch} sequences of {forward.length} random tokens without padding, in float32 on "
        f"{where}: medians of {forward.rounds} rounds, in each of which all three ran right after each other."
    )
    return "\n".join(["## Speed", "", head, "", "| model | time |", "|---|---|", *rows])


def _recipe(metrics: dict[str, Any]) -> str:
    """The run's settings as a file of them, without what names files of the machine that it ran on."""
    settings = {
        name: value
        for name, value in metrics["arguments"].items()
        if value is not None and name not in FREE_ARGUMENTS and (name not in INPUTS or _is_of_hub(value))
    }
    program = "pretrain" if metrics["task"] == "mlm" else "finetune"
    seconds, versions = metrics["seconds"], metrics["versions"]
    head = (
        f"`earlybert {program} --config recipe.yaml`, with the files that it read and a folder to write to, does it "
        f"again. It took {seconds['search']:.0f} s of search and {seconds['train']:.0f} s of training, with "
        f"{', '.join(f'{package} {version}' for package, version in versions.items())}."
    )
    return "\n".join(["## Recipe", "", head, "", "```yaml", yaml.safe_dump(settings, sort_keys=False).rstrip(), "```"])
