"""What a converted model refuses, because it would be wrong without a word, and what it says then."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AttentionInterface,
    BertForMaskedLM,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    ElectraConfig,
    MPNetForSequenceClassification,
)

import earlybert_kernels as ek
from tests.helpers.tiny_bert import batch, packed, some_ticket, tiny_config, tiny_model


def test_tracing_is_refused() -> None:
    model = ek.convert(tiny_model())
    with pytest.raises(RuntimeError, match="restore"):
        torch.jit.trace(model, (torch.ones(2, 5, dtype=torch.int64), torch.ones(2, 5)), strict=False)


def test_export_of_a_padded_batch_is_refused() -> None:
    model = ek.convert(tiny_model())
    with pytest.raises(Exception, match="restore"):
        torch.export.export(model, (), batch())


def test_a_restored_model_is_exported() -> None:
    model = ek.restore(ek.convert(tiny_model()))
    exported = torch.export.export(model, (), batch()).module()
    torch.testing.assert_close(exported(**batch()).logits, model(**batch()).logits)


def test_a_row_that_is_all_padding_has_nothing_to_pool() -> None:
    model = ek.convert(tiny_model(cls=BertForPreTraining))
    with pytest.raises(ValueError, match="leave it out"):
        model(**batch((4, 0, 2)))


def test_a_row_that_is_all_padding_has_no_logits_to_classify() -> None:
    model = ek.convert(tiny_model())
    with pytest.raises(ValueError, match="leave it out"):
        model(**batch((4, 0, 2)))


def test_a_batch_of_padding_alone_is_zeros() -> None:
    model = ek.convert(tiny_model(cls=BertForTokenClassification))
    nothing = {name: torch.zeros(2, 3, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
    outputs = model.bert(**nothing, output_hidden_states=True)
    assert outputs.last_hidden_state.shape == (2, 3, model.config.hidden_size)
    assert outputs.last_hidden_state.count_nonzero() == 0
    assert len(outputs.hidden_states) == model.config.num_hidden_layers + 1
    assert model(**nothing).logits.shape == (2, 3, 3)
    masked = ek.convert(tiny_model(cls=BertForMaskedLM))
    assert masked(**nothing).logits.shape == (2, 3, 50)


def test_without_layers_the_embeddings_are_pooled() -> None:
    stock = tiny_model(num_hidden_layers=0)
    expected = stock(**batch()).logits
    torch.testing.assert_close(ek.convert(stock)(**batch()).logits, expected)


def test_a_head_that_got_another_forward_is_refused() -> None:
    class Own(BertForSequenceClassification):
        def forward(self, **inputs):
            return super().forward(**inputs)

    model = ek.convert(tiny_model())
    model.__class__ = Own
    with pytest.raises(TypeError, match=r"Own\.forward was replaced after the model was converted.*restore"):
        model(**batch())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"position_embedding_type": "relative_key_query"}, "position_embedding_type='relative_key_query'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
    ],
)
def test_config_fields_that_transformers_ignores_are_refused(fields: dict, message: str) -> None:
    config = tiny_config()
    for name, value in fields.items():
        setattr(config, name, value)
    with pytest.raises(ValueError, match=message):
        ek.check_convertible(config)
    model = tiny_model()
    for name, value in fields.items():
        setattr(model.config, name, value)
    with pytest.raises(ValueError, match=message):
        ek.convert(model)


def test_absolute_positions_said_outright_are_fine() -> None:
    config = tiny_config()
    config.position_embedding_type, config.pruned_heads = "absolute", {}
    ek.check_convertible(config)


def test_a_model_that_is_refused_by_name_is_told_why() -> None:
    model = tiny_model(cls=MPNetForSequenceClassification)
    reason = ": MPNet adds a learned bias .*; it takes BertModel, .*ModernBertModel"
    for verb in (ek.convert, ek.enable_gates, ek.to_stock):
        with pytest.raises(TypeError, match=f"no adapter for MPNetForSequenceClassification{reason}"):
            verb(model)
    with pytest.raises(TypeError, match=f"no adapter for models of type 'mpnet'{reason}"):
        ek.check_convertible(model.config)


@pytest.mark.parametrize("verb", [ek.convert, ek.restore, ek.is_converted, ek.enable_gates, ek.to_stock])
def test_what_is_no_model_is_named(verb):
    with pytest.raises(TypeError, match="expected a model .*, found NoneType"):
        verb(None)
    with pytest.raises(TypeError, match="expected a transformers config, found NoneType"):
        ek.check_convertible(None)


def test_a_foreign_module_is_named_whole() -> None:
    class Linear(torch.nn.Linear):
        pass

    model = tiny_model()
    model.bert.encoder.layer[1].output.dense = Linear(40, 24)
    with pytest.raises(TypeError, match=r"encoder\.layer\.1\.output\.dense is a .*test_refusals.*Linear, expected"):
        ek.convert(model)
    Linear.__module__ = "peft.tuners.lora.layer"
    with pytest.raises(TypeError, match=r"a peft\.tuners\.lora\.layer\..*merge_and_unload"):
        ek.convert(model)


def test_offsets_still_pack() -> None:
    model = ek.convert(tiny_model())
    assert model(**packed((3, 2))).logits.shape == (2, 3)


def test_a_batch_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the batch has no tokens: its shape is \(2, 0\)"):
        ek.convert(tiny_model())(input_ids=torch.zeros(2, 0, dtype=torch.int64))


@pytest.mark.parametrize(
    ("name", "value"),
    [("is_causal", True), ("dropout", 0.5), ("scaling", 3.0), ("sliding_window", 2), ("unheard_of", 1)],
)
def test_attention_of_another_kind_is_not_swallowed(name, value) -> None:
    for cls in (BertForSequenceClassification, BertForMaskedLM, BertForQuestionAnswering, BertModel):
        model = ek.convert(tiny_model(cls=cls))
        with pytest.raises(TypeError, match=f"takes no argument {name}=.*restore"):
            model(**batch(), **{name: value})


def test_arguments_that_change_nothing_are_taken() -> None:
    model = ek.convert(tiny_model())
    harmless = {"num_items_in_batch": torch.tensor(4), "return_dict": True, "use_cache": False, "is_causal": False}
    out = model(**batch(), **harmless, output_router_logits=False, output_attentions=False, cache_position=None)
    assert torch.equal(out.logits, model(**batch()).logits)


@pytest.mark.parametrize(("name", "value", "message"), [("is_causal", True, "causal"), ("scaling", 1.0, "scaling is")])
def test_attention_that_was_changed_is_refused(name, value, message) -> None:
    stock = tiny_model()
    setattr(stock.bert.encoder.layer[1].attention.self, name, value)
    with pytest.raises(ValueError, match=rf"layer\.1\.attention\.self.*{message}|{message}"):
        ek.convert(stock)
    model = ek.convert(tiny_model())
    setattr(model.bert.encoder.layer[1].attention.self, name, value)
    with pytest.raises(ValueError, match=message):
        model(**batch())


def test_an_attention_function_of_ones_own_is_refused() -> None:
    def mine(module, query, key, value, mask, **kwargs):
        raise AssertionError

    AttentionInterface.register("mine_of_this_test", mine)
    model = tiny_model()
    model.config._attn_implementation = "mine_of_this_test"
    with pytest.raises(ValueError, match="'mine_of_this_test' is none of transformers' own.*set_attn_implementation"):
        ek.convert(model)
    for known in ("eager", "sdpa"):
        model.config._attn_implementation = known
        ek.restore(ek.convert(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.uint8, torch.int16])
@pytest.mark.parametrize("name", ["input_ids", "token_type_ids", "position_ids"])
def test_ids_of_a_dtype_that_would_be_cut_are_refused(name, dtype) -> None:
    inputs = {**batch(), "position_ids": torch.arange(9).expand(4, 9)}
    inputs[name] = inputs[name].to(dtype)
    with pytest.raises(TypeError, match=f"{name} are {dtype}"):
        ek.convert(tiny_model())(**inputs)


@pytest.mark.parametrize("verb", ["convert", "enable_gates", "compact"])
def test_parameters_made_inside_a_distributed_wrapper_are_refused(verb, tmp_path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = torch.nn.parallel.DistributedDataParallel(ek.convert(tiny_model()))
        with pytest.raises(ValueError, match=f"call {verb} before wrapping"):
            getattr(ek, verb)(model, *[some_ticket(model.module)] * (verb == "compact"))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("transform", ["jvp", "grad"])
def test_transforms_of_a_model_are_refused(transform) -> None:
    model = ek.convert(tiny_model())
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters):
        return torch.func.functional_call(model, parameters, (), {**batch(), "labels": torch.tensor([0, 1, 2, 0])}).loss

    with pytest.raises(NotImplementedError, match="restore"):
        torch.func.jvp(loss, (parameters,), (parameters,)) if transform == "jvp" else torch.func.grad(loss)(parameters)
    torch.testing.assert_close(loss(parameters), model(**batch(), labels=torch.tensor([0, 1, 2, 0])).loss)


def test_a_variant_that_reads_other_tokens_is_refused() -> None:
    ek.check_convertible(ElectraConfig())
    with pytest.raises(ValueError, match="summary_type='mean' cannot be converted; the fused ELECTRA computes 'first'"):
        ek.check_convertible(ElectraConfig(summary_type="mean"))
