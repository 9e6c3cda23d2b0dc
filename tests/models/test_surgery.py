"""Models that were changed by hand: every verb leaves one that saves, reloads and exports, or refuses at once."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, BertForMaskedLM

import earlybert_kernels as ek
from tests.helpers.tiny_bert import batch, tiny_model


def cut(model):
    model.bert.encoder.layer = model.bert.encoder.layer[:2]


def repeat(model):
    model.bert.encoder.layer[2] = model.bert.encoder.layer[0]


def share(model):
    layers = model.bert.encoder.layer
    layers[1].output.dense.weight = layers[0].output.dense.weight


def add(model):
    model.bert.encoder.layer.append(copy.deepcopy(model.bert.encoder.layer[0]))


def words(model):
    model.bert.embeddings.word_embeddings = nn.Embedding(60, 24)


def types(model):
    model.bert.embeddings.token_type_embeddings = nn.Embedding(3, 24)


def positions(model):
    model.bert.embeddings.position_embeddings = nn.Embedding(30, 24)


def eps(model):
    model.config.layer_norm_eps = 0.1


def setting(**fields):
    def change(model):
        for name, value in fields.items():
            setattr(model.config, name, value)

    return change


def untie(model):
    head = model.cls.predictions
    head.decoder.weight = nn.Parameter(head.decoder.weight.detach() * 2)
    head.bias = nn.Parameter(head.bias.detach().clone())  # which a decoder that is tied shares as well


#: What was done -> what the message says.
DISAGREE = {
    "cut": (cut, "2 layers and config.num_hidden_layers is 3"),
    "add": (add, "4 layers and config.num_hidden_layers is 3"),
    "repeat": (repeat, "are one Parameter: layers that are repeated"),
    "share": (share, "are one Parameter: layers that are repeated"),
    "words": (words, r"word_embeddings.weight is \(60, 24\), by the config \(vocab_size=50\) \(50, 24\)"),
    "types": (types, "type_vocab_size=2"),
    "positions": (positions, "max_position_embeddings=24"),
    "eps": (eps, "LayerNorm.eps is 1e-12, by the config 0.1"),
    "neurons": (setting(intermediate_size=5), "intermediate_size=5|do not fit"),
    "heads": (setting(num_attention_heads=2), "heads of 6 values.*num_attention_heads=2|do not fit"),
    "layers": (setting(num_hidden_layers=2), "3 layers and config.num_hidden_layers is 2"),
    "relative": (setting(position_embedding_type="relative_key"), "relative_key.* is not supported"),
    "pruned": (setting(pruned_heads={"0": [1]}), "pruned_heads.* is not supported"),
}
TICKET = ek.Ticket([[0], [1, 2], [0, 3]], [[0, 1], [5], range(7)])


def refused_as_a_whole(model, tmp_path, message):
    """to_stock, compact and saving refuse, and leave the model and the disk as they are."""
    layers, cls = list(model.base_model.encoder.layer), type(model)
    with pytest.raises(ValueError, match=message):
        ek.to_stock(model)
    with pytest.raises(ValueError, match=message):
        ek.compact(model, TICKET)
    assert list(model.base_model.encoder.layer) == layers and type(model) is cls
    if model.config.model_type == "compact_bert":
        with pytest.raises(ValueError, match=message):
            model.save_pretrained(tmp_path / "saved")
        assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("state", ["stock", "converted", "compact", "compact converted"])
@pytest.mark.parametrize("what", DISAGREE)
def test_what_disagrees_is_refused_at_once(tmp_path, what, state):
    surgery, message = DISAGREE[what]
    model = tiny_model(cls=BertForMaskedLM, tie_word_embeddings=False)
    if "compact" in state:
        ek.compact(model, TICKET)
        message += "|do not fit num_hidden_layers"
    if "converted" in state:
        ek.convert(model)
    surgery(model)
    with pytest.raises(ValueError, match=message):
        ek.convert(model)
    refused_as_a_whole(model, tmp_path, message)


@pytest.mark.parametrize("converted", [False, True])
@pytest.mark.parametrize("compact", [False, True])
def test_ties_must_be_the_configs(tmp_path, compact, converted):
    for surgery, message in ((untie, "are one Parameter, in the model they are not"),
                             (setting(tie_word_embeddings=False), "by the config .* they are not")):  # fmt: skip
        model = tiny_model(cls=BertForMaskedLM)
        if compact:
            ek.compact(model, TICKET)
        if converted:
            ek.convert(model)
        surgery(model)
        refused_as_a_whole(model, tmp_path, message)
    model = tiny_model(cls=BertForMaskedLM)
    untie(model)
    model.config.tie_word_embeddings = False
    logits = model(**batch()).logits
    stock = ek.to_stock(ek.convert(model) if converted else model)
    torch.testing.assert_close(stock(**batch()).logits, logits, rtol=1e-5, atol=1e-5)
    full = ek.Ticket([range(4)] * 3, [range(40)] * 3)
    ek.restore(ek.compact(model, full)).save_pretrained(tmp_path)
    again = AutoModelForMaskedLM.from_pretrained(tmp_path)
    torch.testing.assert_close(again(**batch()).logits, logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("surgery", ["cut", "add", "words", "types"])
@pytest.mark.parametrize("when", ["before", "after convert", "after compact"])
def test_surgery_that_the_config_follows_saves_reloads_and_exports(tmp_path, surgery, when):
    model = tiny_model()
    if when == "after compact":
        ek.compact(model, TICKET)
    if when == "after convert":
        ek.convert(model)
    if surgery == "words":
        model.resize_token_embeddings(60)
    else:
        DISAGREE[surgery][0](model)
    config = model.config
    config.num_hidden_layers = len(model.bert.encoder.layer)
    if surgery == "types":
        config.type_vocab_size = 3
    if when == "after compact":
        for name in ("kept_heads", "kept_neurons"):
            kept = getattr(config, name)
            setattr(config, name, (kept + kept[:1])[: config.num_hidden_layers] if surgery == "add" else
                    kept[: config.num_hidden_layers])  # fmt: skip
    if surgery == "add" and when == "after convert":
        for verb in (ek.convert, ek.restore):
            with pytest.raises(ValueError, match=r"encoder.layer.3 was added after the model was converted"):
                verb(model)
    else:
        ek.convert(model)
    logits = model(**batch()).logits
    torch.testing.assert_close(ek.to_stock(model)(**batch()).logits, logits, rtol=1e-5, atol=1e-5)
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(again(**batch()).logits, logits, rtol=1e-5, atol=1e-5)
    if not (surgery == "add" and when == "after convert"):
        torch.testing.assert_close(ek.restore(model)(**batch()).logits, logits, rtol=1e-5, atol=1e-5)
        assert len(model.bert.encoder.layer) == config.num_hidden_layers


def test_a_base_that_was_compacted_inside_its_head_is_refused():
    model = tiny_model()
    ek.compact(model.bert, TICKET)
    with pytest.raises(ValueError, match="do not agree"):
        ek.to_stock(model)


def test_a_head_of_another_size_is_no_obstacle_to_converting_but_to_exporting():
    model = ek.convert(tiny_model())
    model.classifier = nn.Linear(24, 5)
    assert ek.restore(ek.convert(ek.restore(model)))(**batch()).logits.shape == (4, 5)
    with pytest.raises(ValueError, match=r"classifier.weight is \(5, 24\), by the config \(num_labels=3\)"):
        ek.to_stock(model)


def test_checks_draw_no_random_numbers():
    model = tiny_model()
    state = torch.get_rng_state()
    ek.compact(ek.convert(model), TICKET)
    assert torch.equal(torch.get_rng_state(), state)
