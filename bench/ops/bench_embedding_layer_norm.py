"""BERT's embeddings of real tokens, against the modules of a stock BertEmbeddings on the padded batch.

The words' gradient is mostly zeros. Eager writes them here; those of the `cpu` backend come into being when somebody,
an optimizer, reads them, which no row times: look at whole steps for what that is worth.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import earlybert_kernels as ek

from ..shapes import VOCABULARY
from . import roofline
from .cases import Case, Problem
from .subject import Subject, Tensors

_EPS = 1e-12
#: Rows of BERT's tables: words, positions, token types.
_POSITIONS, _TYPES = 512, 2
_PADDING = 0


class EmbeddingLayerNorm(Subject):
    """Three tables, the norm's parameters, and random ids. Pruning does not change it."""

    op = "embedding_layer_norm"
    units = ("dense",)

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        hidden = problem.sizes.hidden
        self.weights = {
            name: self.random(rows, hidden)
            for name, rows in (("word", VOCABULARY), ("position", _POSITIONS), ("token_type", _TYPES))
        }
        self.weights["weight"] = 1 + self.random(hidden, scale=0.1)
        self.weights["bias"] = self.random(hidden, scale=0.1)
        words = torch.randint(1, VOCABULARY, (self.num_tokens,), generator=self._generator)
        positions = torch.cat([torch.arange(n) for n in self.lengths])
        ids = {"input_ids": words, "position_ids": positions, "token_type_ids": torch.zeros_like(words)}
        self.ids = {name: own.to(problem.device) for name, own in ids.items()}
        self.padded_ids = dict(zip(self.ids, self.packing.pad(*self.ids.values()), strict=True))

    def packed(self, inputs: Tensors, dropout_p: float, backend: str) -> Tensor:
        """See `Subject.packed`."""
        options = {"padding_id": _PADDING, "dropout_p": dropout_p, "eps": _EPS, "backend": backend}
        return ek.ops.embedding_layer_norm(**self.ids, **inputs, **options)

    def padded(self, inputs: Tensors, dropout_p: float) -> Tensor:
        """See `Subject.padded`."""
        ids = self.padded_ids
        x = F.embedding(ids["input_ids"], inputs["word"], _PADDING)
        x = x + F.embedding(ids["token_type_ids"], inputs["token_type"])
        x = x + F.embedding(ids["position_ids"], inputs["position"])
        x = F.layer_norm(x, x.shape[-1:], inputs["weight"], inputs["bias"], _EPS)
        return F.dropout(x, dropout_p, training=True)

    def work(self) -> roofline.WorkByMode:
        """See `Subject.work`."""
        problem = self.problem
        return roofline.embedding_layer_norm(self.num_tokens, problem.sizes.hidden, problem.dtype.itemsize)


SUBJECT = EmbeddingLayerNorm


def test_embedding_layer_norm(case: Case, measure: Callable) -> None:
    """One row."""
    measure(SUBJECT, case)
