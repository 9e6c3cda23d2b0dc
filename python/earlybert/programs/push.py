"""A run's model on the Hugging Face hub, with a card that says what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, EvalResult, HfApi, ModelCard, ModelCardData, constants, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # which its documentation shows

from earlybert_kernels.models import family_of_type

from ..errors import MissingFileError, UsageError
from ..files import read_json
from ..loading import reading
from ..run_directory import RunDirectory
from ..tasks import get_task
from ..tasks.metrics import EVAL_LOSS

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


def push(run: str, name: str, *, private: bool = False) -> str:
    """Uploads the model of a finished run, its ticket and a model card to the Hugging Face hub.

    Args:
        run: the run's folder.
        name: of the repository, `name` or `owner/name`, which is made if it is not there.
        private: make it a private one.

    Returns:
        The repository's address.

    Raises:
        UsageError: before anything is sent: the run is not finished, its files are not as it wrote them, the name is
            none that a repository can have, or there is no token. After that: the hub cannot be reached or refuses,
            or the repository is there already and not private.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UsageError(f"{name}: no name for a repository of the hub: {error}") from None
    directory = RunDirectory(run)
    directory.read_metrics()
    directory.check_sums()
    if not directory.model.is_dir():
        raise MissingFileError(f"{directory.model}: no such folder; expected the model of the run")
    if get_token() is None:
        raise UsageError("the hub takes models with a token alone: log in with hf auth login, or set HF_TOKEN")
    card = model_card(run, name)

    contents: dict[str, Any] = {path.name: path for path in sorted(directory.model.iterdir())}
    if directory.ticket.exists():
        contents[directory.ticket.name] = directory.ticket
    contents["README.md"] = str(card).encode()
    additions = [CommitOperationAdd(path, content) for path, content in contents.items()]
    api = HfApi(endpoint=constants.ENDPOINT)
    with reading(f"{name}: not uploaded to {api.endpoint}"):
        address = api.create_repo(name, private=private or None, exist_ok=True)
        if private and not api.model_info(address.repo_id).private:
            raise UsageError("there is such a repository, which is public; give another name, or leave out --private")
        api.create_commit(address.repo_id, additions, commit_message="By earlybert push")
    return str(address)


def model_card(run: str, name: str) -> ModelCard:
    """What a finished run's model is, how good it is and how it is loaded, as the hub shows it.

    Args:
        run: the run's folder.
        name: of the repository.

    Raises:
        UsageError: the run is not finished.
    """
    directory = RunDirectory(run)
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
        parts.append(_widths(metrics))
    parts.append(_loading(name, auto_class, compact=metrics["ticket"] is not None))
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


def _widths(metrics: dict[str, Any]) -> str:
    ticket = metrics["ticket"]
    layers = zip(*(ticket[name] for name in ("heads", "heads_of", "neurons", "neurons_of")), strict=True)
    rows = [f"| {i} | {h} of {all_h} | {n} of {all_n} |" for i, (h, all_h, n, all_n) in enumerate(layers)]
    head = "What is left of each layer; `ticket.json` says which units those are."
    return "\n".join(["## Widths", "", head, "", "| layer | heads | neurons |", "|---|---|---|", *rows])


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
