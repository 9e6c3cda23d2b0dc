"""What stands on padding counts in no head, and a flattened batch is told by its positions."""

import inspect

import pytest
import torch
import transformers
from transformers import DataCollatorWithFlattening

import earlybert_kernels as ek
from earlybert_kernels.models import find_base
from tests.helpers.bert_heads import ALL_HEADS, LENGTHS, MASK, SPANS, model_of
from tests.helpers.tiny_bert import batch, packed, tiny_model

CLASSES = [*ALL_HEADS, "BertForMultipleChoice", "BertModel"]
TOKENS = sum(LENGTHS)


def case(name):
    """A converted model, and a padded batch for it with labels that are -100 or outside where none should count."""
    if name == "BertModel":
        return ek.convert(tiny_model(cls=transformers.BertModel).double()), batch(LENGTHS)
    if name == "BertForMultipleChoice":
        inputs = {n: t.view(2, 2, -1) for n, t in batch(LENGTHS).items()} | {"labels": torch.tensor([1, 0])}
        return ek.convert(tiny_model(cls=transformers.BertForMultipleChoice).double()), inputs
    return ek.convert(model_of(name).double()), {**batch(LENGTHS), **ALL_HEADS[name][0]}


def scribbled(inputs, seed, first=0):
    """The batch with anything on padding: ids that no table has, labels, types, positions, which count from `first`."""
    generator = torch.Generator().manual_seed(seed)
    mask = inputs["attention_mask"].bool()
    inputs = {"position_ids": torch.arange(mask.shape[-1]).expand(mask.shape) + first, **inputs}

    def scribble(name, value):
        if name == "attention_mask" or value.shape != mask.shape:
            return value
        low, high = (0, 3) if name == "labels" else (-(10**6), 10**6)
        return torch.where(mask, value, torch.randint(low, high, mask.shape, generator=generator))

    return {name: scribble(name, value) for name, value in inputs.items()}


def everything(model, inputs):
    """Outputs, and gradients of all parameters."""
    model.zero_grad()
    outputs = model(**inputs)
    loss = outputs.loss if "loss" in outputs else sum(o.sum() for o in outputs.values())
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    assert gradients
    return {n: t.detach() for n, t in outputs.items()} | gradients


def assert_same(ours, theirs, **tolerance):
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, msg=name, **({"rtol": 0, "atol": 0} | tolerance))


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("seed", range(3))
def test_what_stands_on_padding_changes_nothing(name, seed):
    model, inputs = case(name)
    family, base = find_base(model)
    changed = scribbled(inputs, seed, family.first_position(base.config))
    assert any(not torch.equal(changed[n], t) for n, t in inputs.items())
    assert_same(everything(model, changed), everything(model, inputs))


@pytest.mark.parametrize("name", CLASSES)
def test_nan_on_padding_of_embedded_inputs_changes_nothing(name):
    model, inputs = case(name)
    mask = inputs["attention_mask"].bool()
    embedded = model.get_input_embeddings()(inputs.pop("input_ids")).detach()
    inputs["inputs_embeds"] = embedded
    spoilt = embedded.masked_fill(~mask.unsqueeze(-1), float("nan"))
    assert_same(everything(model, {**inputs, "inputs_embeds": spoilt}), everything(model, inputs))


def test_labels_on_padding_do_not_count_without_logits():
    model, inputs = case("BertForMaskedLM")
    changed = scribbled(inputs, 0)
    assert not torch.equal(changed["labels"], inputs["labels"])
    expected = everything(model, inputs)
    for options in ({}, {"max_labelled": TOKENS}):
        ours = everything(model, {**changed, **options, "skip_logits": True})
        assert_same(ours, {n: t for n, t in expected.items() if n != "logits"}, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", sorted({*ALL_HEADS} - {*SPANS}))
def test_arguments_by_position_count_alike(name):
    model, inputs = case(name)
    inputs = scribbled(inputs, 1)
    names = list(inspect.signature(type(model).forward).parameters)[1:-1][:6]  # neither self nor **kwargs
    by_position = [inputs.pop(n, None) for n in names]
    expected = everything(model, {n: v for n, v in zip(names, by_position, strict=True) if v is not None} | inputs)
    model.zero_grad()
    assert torch.equal(model(*by_position, **inputs).loss, expected["loss"])


def test_an_answer_on_padding_is_one_outside_the_row():
    model, inputs = case("BertForQuestionAnswering")
    outside = {**inputs, "start_positions": torch.tensor([0, 9, 8, 9]), "end_positions": torch.tensor([9, 9, 8, 2])}
    on_padding = {**inputs, "start_positions": torch.tensor([0, 1, 8, 3])}
    on_padding["start_positions"][1], on_padding["end_positions"] = 2, torch.tensor([5, 8, 8, 2])
    assert torch.isfinite(model(**outside).loss)
    assert_same(everything(model, on_padding), everything(model, outside))


def test_an_answer_beyond_its_packed_sequence_is_one_outside():
    model, _ = case("BertForQuestionAnswering")
    inputs = packed(LENGTHS)
    outside = {"start_positions": torch.tensor([0, 99, 8, 99]), "end_positions": torch.tensor([99, 99, 8, 2])}
    beyond = {"start_positions": torch.tensor([0, 2, 8, 3]), "end_positions": torch.tensor([5, 11, 8, 2])}
    ours, theirs = everything(model, {**inputs, **beyond}), everything(model, {**inputs, **outside})
    assert torch.isfinite(theirs["loss"]) and theirs["loss"] < 1e3
    assert_same(ours, theirs)
    padded = everything(model, {**batch(LENGTHS), **beyond})
    torch.testing.assert_close(ours["loss"], padded["loss"], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("layout", ["right", "left", "packed"])
def test_a_next_token_is_predicted_within_its_own_sequence(layout):
    model, _ = case("BertLMHeadModel")
    labels = torch.randint(0, 50, MASK.shape, generator=torch.Generator().manual_seed(4))
    inputs = {**batch(LENGTHS), "position_ids": torch.arange(9).expand(4, 9), "labels": labels}
    alone = [
        model(**{n: t[row : row + 1, :length] for n, t in inputs.items()}, num_items_in_batch=1).loss
        for row, length in enumerate(LENGTHS)
        if length > 1
    ]
    expected = torch.stack(alone).sum() / (TOKENS - len(LENGTHS))
    if layout == "left":
        inputs = {
            n: torch.stack([t[b].roll(9 - length) for b, length in enumerate(LENGTHS)]) for n, t in inputs.items()
        }
        inputs["position_ids"] = inputs["position_ids"] * inputs["attention_mask"]
    if layout == "packed":
        inputs = {**packed(LENGTHS), "labels": labels[MASK].unsqueeze(0)}
    # transformers computes this loss in float32.
    torch.testing.assert_close(model(**inputs).loss, expected, rtol=1e-6, atol=1e-6)


def flattened(lengths=LENGTHS):
    """A packed batch as `DataCollatorWithFlattening` makes it at its defaults: without offsets."""
    inputs = packed(lengths)
    del inputs["cu_seq_lens_q"], inputs["max_length_q"]
    return inputs


@pytest.mark.parametrize("name", [*ALL_HEADS, "BertModel"])
def test_a_flattened_batch_without_offsets_is_a_packed_one(name):
    model, inputs = case(name)
    labels = {n: t for n, t in inputs.items() if n not in batch(LENGTHS)}
    labels = {n: t[MASK].unsqueeze(0) if t.shape == MASK.shape else t for n, t in labels.items()}
    assert_same(
        everything(model, {**flattened(), **labels}),
        everything(model, {**packed(LENGTHS, longest=max(LENGTHS)), **labels}),
    )


def test_what_transformers_collator_makes_at_its_defaults_is_taken():
    rows = [[2, 7, 9], [2], [2, 30, 31, 32, 3]]
    inputs = DataCollatorWithFlattening()([{"input_ids": row, "labels": row} for row in rows])
    assert inputs.keys() == {"input_ids", "labels", "position_ids"}
    model = ek.convert(tiny_model(cls=transformers.BertForMaskedLM))
    for row, part in zip(rows, model(**inputs).logits[0].split([3, 1, 5]), strict=True):
        torch.testing.assert_close(part, model(torch.tensor([row])).logits[0], rtol=1e-5, atol=1e-5)
    classifier = ek.convert(tiny_model())
    del inputs["labels"]
    assert classifier(**inputs).logits.shape == (3, 3)


def test_a_mask_of_ones_says_that_a_row_is_one_sequence():
    model = tiny_model(cls=transformers.BertForTokenClassification)
    inputs = {**flattened(), "attention_mask": torch.ones(1, TOKENS)}
    expected = model(**inputs).logits
    torch.testing.assert_close(ek.convert(model)(**inputs).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("positions", [torch.tensor([[0, 1, 2, 3]]), torch.tensor([[3, 4, 7, 8]])])
def test_positions_that_rise_are_one_sequence(positions):
    model, inputs = tiny_model(), {"input_ids": torch.tensor([[4, 5, 6, 7]]), "position_ids": positions}
    expected = model(**inputs).logits
    torch.testing.assert_close(ek.convert(model)(**inputs).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["BertModel", "BertForSequenceClassification", "BertForQuestionAnswering"])
def test_a_flattened_batch_that_cannot_be_read_is_refused(name):
    model = ek.convert(tiny_model(cls=getattr(transformers, name)))
    ids = torch.tensor([[4, 5, 6, 7]])
    for wrong in (
        {"position_ids": torch.tensor([[0, 1, 1, 2]])},
        {"position_ids": torch.tensor([[1, 2, 0, 1]])},
        {"position_ids": torch.zeros(1, 4, dtype=torch.int64)},
        {"seq_idx": torch.tensor([[0, 0, 1, 1]])},
    ):
        with pytest.raises(ValueError, match="return_flash_attn_kwargs=True"):
            model(ids, **wrong)
    model.to("meta")
    with pytest.raises(ValueError, match="cannot be read here.*return_flash_attn_kwargs=True"):
        model(ids.to("meta"), position_ids=torch.arange(4, device="meta"))


def test_a_flattened_multiple_choice_is_refused():
    model, _ = case("BertForMultipleChoice")
    with pytest.raises(ValueError, match="BertForMultipleChoice takes no packed batch"):
        model(**{n: t.unsqueeze(0) for n, t in flattened().items()})
