"""What stands on padding must not count: random content there changes no loss, no gradient and no real output."""

from __future__ import annotations

import pytest
import torch
import transformers
from tiny_bert import batch, tiny_model

import earlybert_kernels as ek

LENGTHS = (5, 1, 9, 3)
TOKEN_LABELS = ("BertForMaskedLM", "BertForTokenClassification", "BertLMHeadModel", "BertForPreTraining")


def inputs_of(head: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    inputs = batch(LENGTHS)
    mask = inputs["attention_mask"]

    def labels(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, high, shape, generator=generator)

    if head == "BertForQuestionAnswering":
        ends = torch.tensor(LENGTHS)
        inputs |= {"start_positions": labels(100, 4) % ends, "end_positions": labels(100, 4) % ends}
    elif head in TOKEN_LABELS:
        classes = 3 if head == "BertForTokenClassification" else 50
        inputs["labels"] = labels(classes, *mask.shape).masked_fill(mask == 0, -100)
        if head == "BertForPreTraining":
            inputs["next_sentence_label"] = labels(2, 4)
    elif head == "BertForMultipleChoice":
        inputs = {name: value.unflatten(0, (2, 2)) for name, value in inputs.items()} | {"labels": labels(2, 2)}
    elif head != "BertModel":
        inputs["labels"] = labels(2 if head == "BertForNextSentencePrediction" else 3, 4)
    return inputs


def disturbed(inputs: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """The same batch with other content on its padding, out of any range for what is looked up in no table."""
    generator = torch.Generator().manual_seed(seed)
    padding = inputs["attention_mask"] == 0
    changed = dict(inputs)
    for name, high in (("input_ids", 50), ("token_type_ids", 2), ("labels", 3)):
        value = inputs.get(name)
        if value is not None and value.shape == padding.shape:
            changed[name] = torch.where(padding, torch.randint(0, high, value.shape, generator=generator), value)
    return changed


HEADS = (*TOKEN_LABELS, "BertModel", "BertForQuestionAnswering", "BertForMultipleChoice",
         "BertForNextSentencePrediction", "BertForSequenceClassification")  # fmt: skip


def tiny_of(head: str):
    return tiny_model(cls=getattr(transformers, head), num_labels=2 if head == "BertForQuestionAnswering" else 3)


def results(model, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    model.zero_grad()
    outputs = model(**inputs)
    loss = outputs.loss if "loss" in outputs else outputs.last_hidden_state.square().sum()
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("skip_logits", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_content_on_padding_changes_nothing(head: str, skip_logits: bool) -> None:
    if skip_logits and head != "BertForMaskedLM":
        pytest.skip("an argument of BertForMaskedLM")
    model = ek.convert(tiny_of(head))
    extra = {"skip_logits": True} if skip_logits else {}
    inputs = inputs_of(head)
    expected = results(model, inputs | extra)
    assert all(value.isfinite().all() for value in expected)
    for seed in range(3):
        for value, truth in zip(results(model, disturbed(inputs, seed) | extra), expected, strict=True):
            torch.testing.assert_close(value, truth, rtol=0, atol=0)


@pytest.mark.parametrize("head", TOKEN_LABELS)
def test_token_labels_may_be_given_by_position(head: str) -> None:
    model = ek.convert(tiny_model(cls=getattr(transformers, head)))
    inputs = inputs_of(head)
    expected = model(**inputs).loss
    other = disturbed(inputs, 1)
    assert not torch.equal(other["labels"], inputs["labels"])
    others = {name: value for name, value in other.items() if name not in ("input_ids", "attention_mask")}
    torch.testing.assert_close(model(other["input_ids"], other["attention_mask"], **others).loss, expected)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("neighbour", [2, 9])
def test_an_answer_behind_the_end_of_its_sequence_does_not_count(neighbour: int, packed: bool) -> None:
    """Whether there is padding at that place depends on how long the other sequence is."""
    model = ek.convert(tiny_of("BertForQuestionAnswering"))
    generator = torch.Generator().manual_seed(2)
    short, other = (torch.randint(1, 50, (length,), generator=generator).tolist() for length in (4, neighbour))
    examples = [
        {"input_ids": short, "start_positions": 1, "end_positions": 2},
        {"input_ids": other, "start_positions": neighbour, "end_positions": neighbour + 3},
    ]
    alone = model(**ek.PackedCollator()(examples[:1])).loss
    if packed:
        inputs = ek.PackedCollator()(examples)
    else:
        rows = [torch.tensor(example["input_ids"]) for example in examples]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        inputs = {"input_ids": ids, "attention_mask": (ids != 0).long()} | {
            name: torch.tensor([example[name] for example in examples]) for name in ("start_positions", "end_positions")
        }
    torch.testing.assert_close(model(**inputs).loss, alone)


def test_labels_on_padding_do_count_again_on_a_restored_model() -> None:
    model = ek.restore(ek.convert(tiny_model(cls=transformers.BertForTokenClassification)))
    inputs = inputs_of("BertForTokenClassification")
    assert not torch.equal(model(**inputs).loss, model(**disturbed(inputs, 0)).loss)
