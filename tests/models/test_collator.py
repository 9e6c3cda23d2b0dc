import pytest
import torch
import transformers
from transformers import DataCollatorWithFlattening

import earlybert_kernels as ek
from tests.helpers.tiny_bert import tiny_model

ROWS = [[2, 7, 9], [2], [2, 30, 31, 32, 3]]


def examples(**more):
    """Of three lengths, with token types; `more` has one entry an example."""
    columns = {"input_ids": ROWS, "token_type_ids": [[i % 2 for i in range(len(r))] for r in ROWS], **more}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def filled(**options):
    return ek.PackedCollator(fill_to=16, batch_size=4, max_length=6, **options)


def results(model, inputs):
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters() if p.grad is not None]


def test_what_transformers_packs_is_packed_alike():
    labelled = examples(labels=[[-100, *row[1:]] for row in ROWS])
    theirs = DataCollatorWithFlattening(return_flash_attn_kwargs=True)(labelled)
    ours = ek.PackedCollator()(labelled)
    assert ours.keys() == {*theirs, "token_type_ids"}
    for name, value in theirs.items():
        if torch.is_tensor(value):
            assert value.dtype == ours[name].dtype and torch.equal(value, ours[name]), name
        else:
            assert value == ours[name], name
    assert ours["token_type_ids"].tolist() == [[0, 1, 0, 0, 0, 1, 0, 1, 0]]


@pytest.mark.parametrize("rows", [examples(), [{n: torch.tensor(v) for n, v in e.items()} for e in examples()]])
def test_lists_and_tensors_are_taken(rows):
    inputs = ek.PackedCollator()(rows)
    assert inputs["input_ids"].tolist() == [[*ROWS[0], *ROWS[1], *ROWS[2]]]
    assert inputs["position_ids"].tolist() == [[0, 1, 2, 0, 0, 1, 2, 3, 4]]
    assert inputs["cu_seq_lens_q"].tolist() == [0, 3, 4, 9] and inputs["max_length_q"] == 5


TASKS = {
    "BertForSequenceClassification": {"label": [0, 2, 1]},
    "BertForTokenClassification": {"labels": [[0, 1, 2], [1], [2, -100, 0, 1, 1]]},
    "BertForQuestionAnswering": {"start_positions": [1, 0, 3], "end_positions": [2, 0, 4]},
    "BertForMaskedLM": {"labels": [[-100, 7, -100], [-100], [-100, 30, -100, 32, -100]]},
    "BertForPreTraining": {
        "labels": [[-100, 7, -100], [-100], [-100, 30, -100, 32, -100]],
        "next_sentence_label": [1, 0, 1],
    },
}


@pytest.mark.parametrize(("name", "skip_logits"), [*((name, False) for name in TASKS), ("BertForMaskedLM", True)])
def test_no_loss_reads_the_filling(name, skip_logits):
    labels = {"num_labels": 2} if name == "BertForQuestionAnswering" else {}
    model = ek.convert(tiny_model(cls=getattr(transformers, name), **labels).double())
    rows = examples(**TASKS[name])
    plain, expected = results(model, ek.PackedCollator()(rows))
    inputs = filled(skip_logits=skip_logits)(rows)
    assert inputs["input_ids"].shape == (1, 16)
    loss, gradients = results(model, inputs)
    torch.testing.assert_close(loss, plain, rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def test_shapes_depend_on_the_bucket_alone():
    """For every number of examples and tokens that there can be, up to the limits."""
    generator = torch.Generator().manual_seed(0)
    collate = filled(skip_logits=True)
    shapes = {}
    for count in (1, 2, 3, 4):
        for _ in range(60):
            lengths = torch.randint(1, 7, (count,), generator=generator).tolist()
            ids = [list(range(2, 2 + n)) for n in lengths]
            inputs = collate([{"input_ids": row, "labels": [-100] * len(row), "start_positions": 0} for row in ids])
            tokens, ends = inputs["input_ids"].shape[1], inputs["cu_seq_lens_q"]
            own = ends.diff().tolist()
            assert tokens % 16 == 0 and ends[-1] == tokens and own[:count] == lengths
            assert all(1 <= n <= 6 for n in own[count:]) and inputs["max_length_q"] == 6
            assert tokens - sum(lengths) < 16 + len(own) - count  # no more filling than needed
            assert inputs["position_ids"].max() < 6
            assert (inputs["start_positions"][count:] == 6).all()
            shapes.setdefault(tokens, set()).add((len(own), inputs["max_labelled"]))
    assert sorted(shapes) == [16, 32] and all(len(found) == 1 for found in shapes.values())


def test_room_for_labels_is_rounded_up():
    rows = [{"input_ids": [5] * 6, "labels": [7, 7, 7, -100, -100, -100]}] * 4
    assert ek.PackedCollator(skip_logits=True)(rows)["max_labelled"] == 12
    inputs = ek.PackedCollator(fill_to=64, batch_size=4, max_length=6, skip_logits=True)(rows[:3])
    assert inputs["input_ids"].shape == (1, 64) and inputs["max_labelled"] == 12  # 9, in 16ths of 64


def test_regression():
    rows = examples(labels=[0.5, 1.5, 4.0])
    inputs = ek.PackedCollator()(rows)
    assert inputs["labels"].dtype == torch.float32
    model = ek.convert(tiny_model(num_labels=1))
    expected = torch.nn.functional.mse_loss(model(**inputs).logits.squeeze(1), inputs["labels"])
    torch.testing.assert_close(model(**inputs).loss, expected)
    with pytest.raises(ValueError, match="no number of theirs says that a filler does not count"):
        filled()(rows)


def test_wrong_examples_are_refused():
    with pytest.raises(ValueError, match="fill_to needs batch_size and max_length"):
        ek.PackedCollator(fill_to=16)
    with pytest.raises(ValueError, match="at least 1, 1 and 2"):
        ek.PackedCollator(fill_to=16, batch_size=4, max_length=1)
    with pytest.raises(ValueError, match="got 5 examples of at most 1 tokens, expected at most batch_size, 4"):
        filled()([{"input_ids": [1]}] * 5)
    with pytest.raises(ValueError, match="at most 7 tokens, .*at most max_length, 6"):
        filled()([{"input_ids": [1] * 7}])
    with pytest.raises(ValueError, match="an example has no tokens"):
        ek.PackedCollator()([{"input_ids": []}, {"input_ids": [1]}])
    with pytest.raises(ValueError, match="labels of an example of 3 tokens are torch.int64 .2,., expected one integer"):
        ek.PackedCollator()(examples(labels=[[1, 2], [1], [2]]))


@pytest.mark.parametrize("key", ["token_type_ids", "labels", "input_ids"])
@pytest.mark.parametrize("without", [0, 1])
def test_examples_of_different_keys_are_refused(key, without):
    rows = examples(labels=[0, 1, 2])
    del rows[without][key]
    message = f"example {without} has no input_ids" if key == "input_ids" else "example 1 has .*, and example 0 "
    with pytest.raises(ValueError, match=message):
        ek.PackedCollator()(rows)


def test_padded_missing_and_unlabelled_examples_are_refused():
    rows = examples(attention_mask=[[1, 1, 1], [1], [1, 1, 1, 0, 0]])
    with pytest.raises(ValueError, match="example 2 is padded.*padding=False"):
        ek.PackedCollator()(rows)
    assert ek.PackedCollator()(rows[:2]).keys() == ek.PackedCollator()(examples()).keys()
    with pytest.raises(ValueError, match="no examples to pack"):
        ek.PackedCollator()([])
    with pytest.raises(ValueError, match="skip_logits=True needs labels"):
        ek.PackedCollator(skip_logits=True)(examples())


def test_labels_are_what_the_caller_says_of_them():
    rows = examples()
    lengths = [len(row["input_ids"]) for row in rows]
    # Of the first example as many as it has tokens: by their shape they would be these tokens'.
    several = [{**row, "labels": [0.0, 1.0, 1.0]} for row in rows]
    assert lengths[0] == 3
    with pytest.raises(
        ValueError, match="labels of an example of 3 tokens are torch.float32 .3,., expected one integer"
    ):
        ek.PackedCollator()(several)
    inputs = ek.PackedCollator(labels_of="sequences")(several)
    assert inputs["labels"].tolist() == [[0.0, 1.0, 1.0]] * 3 and inputs["labels"].dtype == torch.float32
    model = ek.convert(tiny_model(problem_type="multi_label_classification"))
    output = model(**inputs)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(output.logits, inputs["labels"])
    torch.testing.assert_close(output.loss, expected)

    of_tokens = [{**row, "labels": [1] * length} for row, length in zip(rows, lengths, strict=True)]
    assert ek.PackedCollator(labels_of="tokens")(of_tokens)["labels"].shape == (1, sum(lengths))
    with pytest.raises(ValueError, match="labels of the examples have shapes .*, expected one shape"):
        ek.PackedCollator(labels_of="sequences")(of_tokens)
    with pytest.raises(ValueError, match="labels of an example of 3 tokens are torch.int64 .., expected one integer"):
        ek.PackedCollator(labels_of="tokens")(examples(labels=[1, 2, 0]))
    with pytest.raises(ValueError, match="no number of theirs says that a filler does not count"):
        ek.PackedCollator(fill_to=16, batch_size=4, max_length=6, labels_of="sequences")(several)
    with pytest.raises(ValueError, match="labels_of is 'rows', expected"):
        ek.PackedCollator(labels_of="rows")
