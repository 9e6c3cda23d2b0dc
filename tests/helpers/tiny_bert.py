"""Small BERTs of odd shapes, and models of the other families like them, and padded batches for them."""

from __future__ import annotations

import torch
from transformers import BertConfig, BertForSequenceClassification
from transformers.models.modernbert import modeling_modernbert

import earlybert_kernels as ek
from earlybert_kernels.models import find_base

#: Shapes that break assumptions: one head, head size 1, widths that are primes, one layer.
ODD = {
    "small": {"hidden_size": 24, "num_attention_heads": 4, "intermediate_size": 40, "num_hidden_layers": 3},
    "one_head": {"hidden_size": 10, "num_attention_heads": 1, "intermediate_size": 7, "num_hidden_layers": 2},
    "head_size_1": {"hidden_size": 5, "num_attention_heads": 5, "intermediate_size": 13, "num_hidden_layers": 1},
    "tanh_gelu": {
        "hidden_size": 12,
        "num_attention_heads": 2,
        "intermediate_size": 17,
        "num_hidden_layers": 2,
        "hidden_act": "gelu_new",
    },
    "relu": {
        "hidden_size": 14,
        "num_attention_heads": 7,
        "intermediate_size": 31,
        "num_hidden_layers": 2,
        "hidden_act": "relu",
    },
}


#: What other families call the fields of a BERT's config; DistilBERT and ALBERT have another dropout in heads.
NAMES = {
    "distilbert": {
        "hidden_dropout_prob": ("dropout", "seq_classif_dropout", "qa_dropout"),
        "attention_probs_dropout_prob": ("attention_dropout",),
        "intermediate_size": ("hidden_dim",),
        "hidden_act": ("activation",),
    },
    "albert": {"hidden_dropout_prob": ("hidden_dropout_prob", "classifier_dropout_prob")},
    "modernbert": {
        "hidden_dropout_prob": ("mlp_dropout", "embedding_dropout", "classifier_dropout"),
        "attention_probs_dropout_prob": ("attention_dropout",),
        "hidden_act": ("hidden_activation",),
    },
}
#: What other families need besides: the padding of `batch` is 0 everywhere.
_ROBERTA = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
BESIDES = {
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "electra": {"embedding_size": 8},
    "albert": {"embedding_size": 8},
    # Windows smaller than most sequences; biases, which the models that there are lack.
    "modernbert": {
        **_ROBERTA,
        "cls_token_id": 2,
        "sep_token_id": 3,
        "local_attention": 4,
        "attention_bias": True,
        "mlp_bias": True,
        "norm_bias": True,
        "classifier_bias": True,
    },
}


def tiny_config(shape: str = "small", dropout: float = 0.0, cls=BertConfig, **more):
    fields = {"vocab_size": 50, "max_position_embeddings": 24, "num_labels": 3, "initializer_range": 0.3}
    dropouts = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), dropout)
    fields = {**fields, **ODD[shape], **dropouts, **BESIDES.get(cls.model_type, {}), **more}
    names = NAMES.get(cls.model_type, {})
    fields = {name: value for field, value in fields.items() for name in names.get(field, (field,))}
    return cls(**fields)


def _rotated(q, k, cos, sin, unsqueeze_dim=1):
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    turn, wide = modeling_modernbert.rotate_half, torch.promote_types(q.dtype, torch.float32)
    return tuple((each.to(wide) * cos + turn(each.to(wide)) * sin).to(each.dtype) for each in (q, k))


# Stock takes queries and keys in float32 here, also those in float64, and what is compared in that would show it.
modeling_modernbert.apply_rotary_pos_emb = _rotated


def tiny_model(shape: str = "small", cls=BertForSequenceClassification, dropout: float = 0.0, **more):
    torch.manual_seed(1)
    model = cls(tiny_config(shape, dropout, cls.config_class, **more)).eval()
    for module in model.modules():  # biases and norms start at 0 and 1, which would hide mistakes
        if isinstance(module, torch.nn.Linear | torch.nn.LayerNorm) and module.bias is not None:
            torch.nn.init.normal_(module.bias, std=0.3)
        if isinstance(module, torch.nn.LayerNorm):
            torch.nn.init.normal_(module.weight, mean=1.0, std=0.2)
    return model


def batch(lengths: tuple[int, ...] = (5, 1, 9, 3), vocabulary: int = 50, seed: int = 0) -> dict[str, torch.Tensor]:
    """A right-padded batch with token types."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(1, vocabulary, mask.shape, generator=generator) * mask
    types = torch.randint(0, 2, mask.shape, generator=generator) * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def set_gates(model, seed: int = 3) -> None:
    """Gates away from 1, some of them negative."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for gate in ek.head_gates(model) + ek.neuron_gates(model):
            gate.copy_(torch.randn(gate.shape, generator=generator) + 0.5)


def some_ticket(model, seed: int = 5):
    """A ticket with other widths in every layer."""
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    family, _ = find_base(model)

    def keep(units: int, layer: int) -> list[int]:
        count = max(1, (units * (3 + layer)) // 7)
        return torch.randperm(units, generator=generator)[:count].tolist()

    heads, neurons = family.units(config)
    return ek.Ticket(*([keep(units, layer) for layer, units in enumerate(of)] for of in (heads, neurons)))


def packed(lengths: tuple[int, ...], seed: int = 0, longest: int = 12) -> dict:
    """The real tokens of `batch(lengths, seed=seed)` as a packed batch whose sequences may have `longest` tokens."""
    padded = batch(lengths, seed=seed)
    real = padded["attention_mask"].bool()
    offsets = torch.tensor([0, *lengths]).cumsum(0).int()
    return {
        "input_ids": padded["input_ids"][real].unsqueeze(0),
        "token_type_ids": padded["token_type_ids"][real].unsqueeze(0),
        "position_ids": torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0),
        "cu_seq_lens_q": offsets,
        "max_length_q": longest,
    }
