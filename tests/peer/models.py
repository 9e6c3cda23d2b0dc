"""Transformers' common model tests over BERT's heads, as EARLYBERT_PEER says: stock, converted, gated, masked, compact.

Run by `python tests/peer/run.py`, which fetches the tests.
"""

from __future__ import annotations

import contextlib
import functools
import os
import unittest

import torch
import transformers
from tests.test_modeling_common import ModelTesterMixin, ids_tensor, random_attention_mask

import earlybert_kernels as ek
from earlybert_kernels.models import agreement

HEADS = (
    "BertModel",
    "BertForPreTraining",
    "BertForMaskedLM",
    "BertForNextSentencePrediction",
    "BertForSequenceClassification",
    "BertForMultipleChoice",
    "BertForTokenClassification",
    "BertForQuestionAnswering",
)
CLASSES = tuple(getattr(transformers, name) for name in HEADS)
BATCH, LENGTH = 13, 7


def keep_half(model, *_):
    """A forward pre-hook that applies a ticket before the first forward, when the weights are there."""
    layers = model.base_model.encoder.layer
    if layers[0].active_heads is None:
        config = model.config
        heads, neurons = range(0, config.num_attention_heads, 2), range(0, config.intermediate_size, 2)
        ek.apply_ticket(model, ek.Ticket([heads] * len(layers), [neurons] * len(layers)))


CHANGES = {
    "stock": lambda model: None,
    "converted": ek.convert,
    "gated": lambda model: ek.enable_gates(ek.convert(model)),
    "masked": lambda model: ek.convert(model).register_forward_pre_hook(keep_half),
    "compact": ek.convert,
}
VARIANT = os.environ["EARLYBERT_PEER"]
if VARIANT == "compact":
    CLASSES = tuple(map(ek.models.compact_classes.COMPACT_CLASSES.compact, CLASSES))


def changed_when_built(cls: type, change) -> None:
    """Makes every model of this very class a changed one; a model inside another is changed with it."""
    build = cls.__init__

    @functools.wraps(build)
    def build_and_change(self, *args, **kwargs):
        with inside() as outermost:
            build(self, *args, **kwargs)
        if outermost and type(self) is cls:
            change(self)

    cls.__init__ = build_and_change


@contextlib.contextmanager
def inside():
    """What is built in here is not changed; gives whether this is so from here on alone."""
    outermost, inside.now = not inside.now, True
    try:
        yield outermost
    finally:
        inside.now = not outermost


inside.now = False
# The models that the library itself builds, to compare with a config, are to be those of transformers.
check_built = agreement._check_built
agreement._check_built = lambda *args, **kwargs: inside()(check_built)(*args, **kwargs)
for cls in CLASSES:
    changed_when_built(cls, CHANGES[VARIANT])


class Tester:
    """What the common tests ask of a family: a small config and inputs for it."""

    batch_size, seq_length, is_training, hidden_size = BATCH, LENGTH, True, 32
    num_hidden_layers, num_attention_heads, num_choices = 2, 4, 3

    def __init__(self, parent):
        self.parent = parent

    def get_config(self):
        config = transformers.BertConfig(
            vocab_size=99,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=64,
            max_position_embeddings=64,
            hidden_dropout_prob=0.1,
            attention_probs_dropout_prob=0.1,
        )
        if VARIANT != "compact":
            return config
        # As many heads in every layer, because the tests know one number of them.
        kept = ek.Ticket([range(self.num_attention_heads)] * 2, [range(0, 64, 3), range(0, 64, 5)])
        return ek.models.compact_config.CompactBertConfig.of(config, kept)

    def prepare_config_and_inputs_for_common(self):
        ids = ids_tensor([BATCH, LENGTH], 99)
        types = ids_tensor([BATCH, LENGTH], 2)
        mask = random_attention_mask([BATCH, LENGTH])
        return self.get_config(), {"input_ids": ids, "token_type_ids": types, "attention_mask": mask}


class Common(ModelTesterMixin):
    """The common tests of one head."""

    test_resize_embeddings = True

    def setUp(self):
        self.model_tester = Tester(self)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if return_labels and model_class.__name__.endswith("BertForPreTraining"):  # it has no loss without both
            inputs["labels"] = torch.zeros(BATCH, LENGTH, dtype=torch.long)
            inputs["next_sentence_label"] = torch.zeros(BATCH, dtype=torch.long)
        return inputs


for name, cls in zip(HEADS, CLASSES, strict=True):
    globals()[f"Test{name}"] = type(f"Test{name}", (Common, unittest.TestCase), {"all_model_classes": (cls,)})
