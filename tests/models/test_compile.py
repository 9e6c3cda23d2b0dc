"""Converted models, given packed batches, as one graph, called and compared with themselves uncompiled."""

import pytest
import torch
import transformers

import earlybert_kernels as ek
from tests.helpers.tiny_bert import packed, set_gates, some_ticket, tiny_model

SHAPES = ((5, 1, 9, 3), (7, 2, 4), (11, 5, 6, 7, 8), (2, 3))


def inputs_for(name, lengths, seed):
    count, tokens, longest = len(lengths), sum(lengths), max(lengths)
    inputs = packed(lengths, seed=seed, longest=longest)
    # As PackedCollator and transformers' collators give them: twice.
    inputs |= {"cu_seq_lens_k": inputs["cu_seq_lens_q"], "max_length_k": longest}
    if name.endswith("ForSequenceClassification"):
        return {**inputs, "labels": torch.arange(count) % 3}
    if name == "BertForQuestionAnswering":
        ends = torch.tensor(lengths) - 1
        return {**inputs, "start_positions": torch.zeros(count, dtype=torch.long), "end_positions": ends}
    labels = torch.where(torch.arange(tokens) % 3 == 0, inputs["input_ids"], -100)
    return {**inputs, "labels": labels, "skip_logits": True, "max_labelled": tokens // 3 + 2}


def train(model, run, inputs):
    model.zero_grad()
    outputs = run(**inputs)
    outputs.loss.backward()
    return outputs.loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("name", "backend", "layers"),
    [
        ("BertForSequenceClassification", "inductor", 1),
        # What can break the graph is the same for every compiler, and these are fast.
        ("BertForQuestionAnswering", "eager", 1),
        # One layer before others, and the last, which may compute less.
        ("BertForMaskedLM", "aot_eager", 2),
        ("DistilBertForSequenceClassification", "eager", 2),
        ("AlbertForSequenceClassification", "eager", 2),
    ],
)
def test_training_compiles_into_one_graph_for_all_shapes(name, backend, layers):
    fields = {"num_labels": 2} if name == "BertForQuestionAnswering" else {}
    fields |= {"problem_type": "single_label_classification"} if "Sequence" in name else {}
    model = tiny_model(cls=getattr(transformers, name), num_hidden_layers=layers, **fields)
    model = ek.enable_gates(ek.convert(model)).train()
    set_gates(model)
    ek.apply_ticket(model, some_ticket(model))
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    for number, lengths in enumerate(SHAPES):
        inputs = inputs_for(name, lengths, seed=number)
        expected_loss, expected = train(model, model, inputs)
        with torch._dynamo.config.patch(error_on_recompile=number > 0):
            loss, gradients = train(model, compiled, inputs)
        torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-6)
        assert gradients.keys() == expected.keys()
        for key, gradient in expected.items():
            torch.testing.assert_close(gradients[key], gradient, rtol=1e-4, atol=1e-5, msg=key)


def test_a_compiled_step_draws_new_dropout_each_time():
    model = ek.convert(tiny_model(dropout=0.5, num_hidden_layers=1)).train()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    inputs = packed((5, 1, 9, 3))
    assert not torch.equal(compiled(**inputs).logits, compiled(**inputs).logits)
