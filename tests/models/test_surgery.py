"""Models that their users have changed: a verb leaves one that saves, loads and exports, or says what disagrees."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from tiny_bert import batch, tiny_model
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, BertForMaskedLM

import earlybert_kernels as ek


def layers(model) -> torch.nn.ModuleList:
    return model.bert.encoder.layer


def cut_layers(model) -> None:
    del layers(model)[1]


def cut_layers_rightly(model) -> None:
    cut_layers(model)
    model.config.num_hidden_layers = len(layers(model))


def add_a_layer_rightly(model) -> None:
    layers(model).append(copy.deepcopy(layers(model)[0]))
    model.config.num_hidden_layers = len(layers(model))


def add_a_layer(model) -> None:
    layers(model).append(copy.deepcopy(layers(model)[0]))


def repeat_a_layer(model) -> None:
    layers(model)[1] = layers(model)[0]


def share_a_weight(model) -> None:
    layers(model)[1].attention.self.query.weight = layers(model)[0].attention.self.query.weight


def resize_embeddings(model) -> None:
    model.resize_token_embeddings(61, mean_resizing=False)


def replace_embeddings(model) -> None:
    model.bert.embeddings.word_embeddings = torch.nn.Embedding(61, model.config.hidden_size, padding_idx=0)


def more_token_types(model) -> None:
    model.bert.embeddings.token_type_embeddings = torch.nn.Embedding(5, model.config.hidden_size)


def edit_the_number_of_heads(model) -> None:
    model.config.num_attention_heads = 2


def edit_the_width(model) -> None:
    model.config.intermediate_size = 39


def untie(model) -> None:
    decoder = model.cls.predictions.decoder
    decoder.weight = torch.nn.Parameter(decoder.weight.detach().clone())


def untie_rightly(model) -> None:
    untie(model)
    model.cls.predictions.bias = torch.nn.Parameter(model.cls.predictions.bias.detach().clone())
    model.config.tie_word_embeddings = False


RIGHT = (cut_layers_rightly, add_a_layer_rightly, resize_embeddings)
WRONG = (
    (cut_layers, "2 layers and config.num_hidden_layers is 3"),
    (add_a_layer, "4 layers and config.num_hidden_layers is 3"),
    (repeat_a_layer, "are one Parameter"),
    (share_a_weight, "are one Parameter"),
    (replace_embeddings, "vocab_size"),
    (more_token_types, "type_vocab_size"),
    (edit_the_number_of_heads, "num_attention_heads"),
    (edit_the_width, "intermediate_size"),
)


def any_ticket(model) -> ek.Ticket:
    return ek.Ticket([[0, 2]] * len(layers(model)), [[1, 5, 9]] * len(layers(model)))


def check_it_works(model, auto_class, path) -> None:
    """Saved, loaded and exported it gives what it gives."""
    model.eval()
    expected = model(**batch()).logits
    model.save_pretrained(path)
    torch.testing.assert_close(auto_class.from_pretrained(path).eval()(**batch()).logits, expected)
    torch.testing.assert_close(ek.to_stock(model).eval()(**batch()).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("surgery", RIGHT)
@pytest.mark.parametrize("verb", ["convert", "compact", "gates", "both"])
def test_what_agrees_works_afterwards(surgery: Callable, verb: str, tmp_path) -> None:
    model = tiny_model()
    surgery(model)
    if verb in ("compact", "both"):
        ek.compact(model, any_ticket(model))
    if verb == "gates":
        ek.enable_gates(model)
    if verb != "compact":
        ek.convert(model)
    real = batch()["attention_mask"].bool()
    assert real.any()
    check_it_works(model, AutoModelForSequenceClassification, tmp_path)


@pytest.mark.parametrize(("surgery", "message"), WRONG)
def test_what_disagrees_is_refused_and_left_alone(surgery: Callable, message: str) -> None:
    for verb in (lambda model: ek.compact(model, any_ticket(model)), ek.to_stock):
        model = tiny_model()
        surgery(model)
        cls, state = type(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with pytest.raises(ValueError, match=message):
            verb(model)
        assert type(model) is cls
        assert not ek.is_converted(model)
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(("surgery", "message"), [entry for entry in WRONG if entry[0] not in (edit_the_width,)])
def test_a_compact_model_is_not_saved_where_it_could_not_be_loaded(surgery: Callable, message: str, tmp_path) -> None:
    model = ek.compact(tiny_model(), any_ticket(tiny_model()))
    surgery(model)
    with pytest.raises(ValueError, match=r"agree|config|one Parameter"):
        model.save_pretrained(tmp_path)
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize("rightly", [False, True])
def test_tied_weights(rightly: bool, tmp_path) -> None:
    model = tiny_model(cls=BertForMaskedLM)
    (untie_rightly if rightly else untie)(model)
    if rightly:
        check_it_works(ek.compact(model, any_ticket(model)), AutoModelForMaskedLM, tmp_path)
        return
    with pytest.raises(ValueError, match="tie_word_embeddings"):
        ek.compact(model, any_ticket(model))


def test_the_readme_of_a_saved_folder_says_how_to_load_it_and_leaves_the_users(tmp_path) -> None:
    model = ek.compact(tiny_model(), any_ticket(tiny_model()))
    model.save_pretrained(tmp_path)
    assert "import earlybert_kernels" in (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text("mine")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
