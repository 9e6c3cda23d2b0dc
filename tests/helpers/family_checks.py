"""What a model family can do, found out by doing it with small models: the rows of docs/families.md."""

from __future__ import annotations

import copy
import inspect
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

import earlybert_kernels as ek
from earlybert_kernels.models import families
from earlybert_kernels.models.family import Head, ModelFamily
from earlybert_kernels.models.registry import REFUSED
from tests.helpers.tiny_bert import batch, set_gates, some_ticket, tiny_model

LENGTHS = (5, 2, 9, 3)
CLASSES = torch.tensor([0, 2, 1, 1])
TABLE = Path(__file__).parents[2] / "docs" / "families.md"
DONE, NOT_THERE = "yes", "-"

#: Wide enough for any order of additions in float64.
CLOSE = {"rtol": 1e-9, "atol": 1e-10}


def _head(family: ModelFamily, task: str) -> Head | None:
    return next((head for head in family.heads if head.auto_class == f"AutoModelFor{task}"), None)


def _model(family: ModelFamily, task: str, **fields):
    head = _head(family, task)
    return None if head is None else tiny_model(cls=head.stock, **fields).double()


def _trained(model, inputs):
    """The outputs, and the gradients of all parameters that have one."""
    model.zero_grad()
    outputs = model(**inputs)
    outputs.loss.backward()
    return outputs, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def _assert_same(ours, theirs) -> None:
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, msg=name, **CLOSE)


def _examples(labels) -> list[dict]:
    padded = batch(LENGTHS)
    rows = [{n: padded[n][row, :length] for n in ("input_ids", "token_type_ids")} for row, length in enumerate(LENGTHS)]
    return [row | {"labels": label} for row, label in zip(rows, labels, strict=True)]


def same_as_stock(family: ModelFamily) -> str:
    """Loss, logits and gradients of a padded, an unpadded and two packed batches, the last without offsets."""
    model = _model(family, "SequenceClassification")
    padded = {**batch(LENGTHS), "labels": CLASSES}
    whole = {n: t for n, t in batch((9, 9, 9, 9)).items() if n != "attention_mask"} | {"labels": CLASSES}
    expected = [_trained(model, inputs) for inputs in (padded, whole, padded, padded)]
    ek.convert(model)
    packed = ek.PackedCollator()(_examples(CLASSES))
    flattened = {n: v for n, v in packed.items() if "_lens_" not in n and "_length_" not in n}
    for inputs, (theirs, gradients) in zip((padded, whole, packed, flattened), expected, strict=True):
        outputs, ours = _trained(model, inputs)
        torch.testing.assert_close(outputs.loss, theirs.loss, **CLOSE)
        torch.testing.assert_close(outputs.logits, theirs.logits, **CLOSE)
        _assert_same(ours, gradients)
    return DONE


def restored(family: ModelFamily) -> str:
    """`restore` gives back the very modules, and nothing is left on the model."""
    model = _model(family, "SequenceClassification")
    modules, stock = dict(model.named_modules()), model(**batch()).logits
    ek.restore(ek.convert(model))
    assert dict(model.named_modules()) == modules and torch.equal(model(**batch()).logits, stock)
    assert not any("forward" in vars(module) or module._forward_pre_hooks for module in model.modules())
    return DONE


def searched(family: ModelFamily) -> str:
    """Gates that are trained, masked units, and `to_stock` of both, which stock code runs."""
    model = ek.enable_gates(ek.convert(_model(family, "SequenceClassification")))
    set_gates(model)
    _trained(model, {**batch(), "labels": CLASSES})
    assert all(gate.grad.abs().max() > 0 for gate in (*ek.head_gates(model), *ek.neuron_gates(model)))
    torch.testing.assert_close(ek.to_stock(model)(**batch()).logits, model(**batch()).logits, **CLOSE)
    ek.apply_ticket(model, some_ticket(model))
    torch.testing.assert_close(ek.to_stock(model)(**batch()).logits, model(**batch()).logits, **CLOSE)
    return DONE


def compacted(family: ModelFamily) -> str:
    """Masked and compact, converted and stock: the same; and fewer parameters."""
    model = _model(family, "SequenceClassification")
    ticket = some_ticket(model)
    expected = ek.apply_ticket(ek.convert(copy.deepcopy(model)), ticket)(**batch()).logits
    before = sum(p.numel() for p in model.parameters())
    compact = ek.compact(model, ticket)
    assert sum(p.numel() for p in compact.parameters()) < before
    torch.testing.assert_close(compact(**batch()).logits, expected, **CLOSE)
    torch.testing.assert_close(ek.convert(compact)(**batch()).logits, expected, **CLOSE)
    torch.testing.assert_close(ek.to_stock(compact)(**batch()).logits, expected, **CLOSE)
    return DONE


def saved(family: ModelFamily) -> str:
    """Compact base models, classifiers and masked language models are saved, and loaded by the Auto class."""
    classes = dict(family.auto_classes)
    for auto_class in ("AutoModel", "AutoModelForSequenceClassification", "AutoModelForMaskedLM"):
        cls = classes[auto_class]
        model = tiny_model(cls=cls, num_labels=2)
        ek.compact(model, some_ticket(model))
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            loaded = getattr(transformers, auto_class).from_pretrained(folder)
        assert type(loaded) is type(model) and loaded.config.ticket == model.config.ticket
        theirs = model.state_dict()
        assert loaded.state_dict().keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in loaded.state_dict().items())
    return DONE


def first_token(family: ModelFamily) -> str:
    """The last layer of a classifier computes the first token of each sequence alone."""
    model = ek.convert(_model(family, "SequenceClassification"))
    rows = []
    for _, layer in family.named_layers_of(model.base_model):
        layer.register_forward_hook(lambda module, args, out: rows.append(out.shape[0]))
    logits = model(**batch((5, 1, 9, 3))).logits
    assert rows == [18, 18, 4]
    with_states = model(**batch((5, 1, 9, 3)), output_hidden_states=True)
    assert rows[3:] == [18, 18, 18] and len(with_states.hidden_states) == 4
    torch.testing.assert_close(with_states.logits, logits, **CLOSE)
    return DONE


def masked_words(family: ModelFamily) -> str:
    """The loss of labelled tokens alone, without logits, has the value and the gradients that stock gives it."""
    model = _model(family, "MaskedLM")
    if model is None:
        return NOT_THERE
    labels = torch.full((4, 9), -100)
    labels[0, 2], labels[2, 8], labels[3, 0] = 7, 1, 49
    logits = model(**batch(LENGTHS)).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())  # some compute it in float32
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    outputs, ours = _trained(ek.convert(model), {**batch(LENGTHS), "labels": labels, "skip_logits": True})
    assert outputs.logits is None
    torch.testing.assert_close(outputs.loss, loss, **CLOSE)
    _assert_same(ours, gradients)
    return DONE


def _unpadded(task: str, labels: dict, **fields) -> Callable[[ModelFamily], str]:
    """A head on a batch without padding, which stock scores."""

    def check(family: ModelFamily) -> str:
        model = _model(family, task, **fields)
        if model is None:
            return NOT_THERE
        inputs = {n: t for n, t in batch((9, 9, 9, 9)).items() if n != "attention_mask"}
        taken = inspect.signature(model.forward).parameters
        inputs |= {n: t for n, t in labels.items() if n in taken}
        if task == "MultipleChoice":
            inputs = {n: t.view(2, 2, -1) if n != "labels" else t for n, t in inputs.items()}
        theirs, gradients = _trained(model, inputs)
        outputs, ours = _trained(ek.convert(model), inputs)
        for name, expected in theirs.items():
            torch.testing.assert_close(outputs[name], expected, **CLOSE)
        _assert_same(ours, gradients)
        return DONE

    check.__doc__ = f"{task}: loss, outputs and gradients as stock's."
    return check


TOKENS = {"labels": torch.arange(36).view(4, 9) % 2}

CHECKS: dict[str, Callable[[ModelFamily], str]] = {
    "equals stock: padded, unpadded, packed": same_as_stock,
    "`restore`": restored,
    "gates, masked search, `to_stock`": searched,
    "`compact`": compacted,
    "compact models saved and reloaded (base, classifier, masked language model)": saved,
    "classifiers compute one token in the last layer": first_token,
    "masked language model, labelled tokens alone": masked_words,
    "question answering": _unpadded(
        "QuestionAnswering",
        {"start_positions": torch.tensor([0, 1, 8, 1]), "end_positions": torch.tensor([3, 1, 8, 2])},
        num_labels=2,
    ),
    "token classification": _unpadded("TokenClassification", TOKENS),
    "multiple choice": _unpadded("MultipleChoice", {"labels": torch.tensor([1, 0])}),
    "pre-training head": _unpadded(
        "PreTraining",
        {**TOKENS, **dict.fromkeys(("next_sentence_label", "sentence_order_label"), torch.tensor([0, 1, 1, 0]))},
        num_labels=2,
    ),
    "next-token head, as an encoder": _unpadded("CausalLM", TOKENS),
}


def row(family: ModelFamily) -> str:
    """The family's row of the table; an AssertionError where the library does not do what it should."""
    return f"| {family.name} | {' | '.join(check(family) for check in CHECKS.values())} |"


def page() -> str:
    head = f"| | {' | '.join(CHECKS)} |\n|---|{'---|' * len(CHECKS)}"
    rows = "\n".join(map(row, families()))
    refused = "\n".join(f"- `{model_type}`: {reason}." for model_type, reason in REFUSED.items())
    return f"""\
# Model families

What was tried with a small model of each family, next to stock transformers in float64.
`tests/helpers/family_checks.py` has the code of every column; `python -m tests.helpers.family_checks` runs it and
writes this page. `-`: transformers has no such class that it loads for the task.

{head}
{rows}

ALBERT has one layer, which it runs `num_hidden_layers` times: a ticket of it has one layer, and a gate's gradient is
the sum over the rounds. A config with more (`num_hidden_groups` or `inner_group_num` above 1) is refused.

Every other model is refused with an error that names these families. With its reason:

{refused}
"""


if __name__ == "__main__":
    TABLE.write_text(page(), encoding="utf-8")
