"""The sizes of BERT and of families like it that are measured, and what the paper's ticket leaves of a layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig

import earlybert_kernels as ek
from earlybert import draw
from earlybert_kernels.models import family_of_type

#: Of BERT's uncased vocabulary.
VOCABULARY = 30522
#: Everywhere in BERT, while it trains.
DROPOUT = 0.1


@dataclass(frozen=True)
class Shape:
    """The widths of an encoder.

    Attributes:
        layers: encoder layers.
        hidden: E, width of a token.
        heads: H, attention heads of a layer; their size is `hidden / heads`.
        neurons: F, feed-forward neurons of a layer.
    """

    layers: int
    hidden: int
    heads: int
    neurons: int

    @property
    def head_size(self) -> int:
        """D, columns of one head."""
        return self.hidden // self.heads

    def config(self, model_type: str = "bert") -> PreTrainedConfig:
        """The configuration of a Hugging Face model of this shape, whose other fields are those that its type has."""
        family = family_of_type(model_type)
        sizes = {
            "num_hidden_layers": self.layers,
            "hidden_size": self.hidden,
            "num_attention_heads": self.heads,
            family.neurons_field: self.neurons,
        }
        return family.config(**sizes)

    def ticket(self, seed: int = 0) -> ek.Ticket:
        """Random units of the paper's ratios: a third of each layer's heads and 40% of all neurons dropped."""
        return random_ticket([self.heads] * self.layers, [self.neurons] * self.layers, seed)


SHAPES = {
    "tiny": Shape(layers=2, hidden=128, heads=2, neurons=512),
    "minilm": Shape(layers=6, hidden=384, heads=12, neurons=1536),
    "base": Shape(layers=12, hidden=768, heads=12, neurons=3072),
    "distilbert-base": Shape(layers=6, hidden=768, heads=12, neurons=3072),
    "modernbert-base": Shape(layers=22, hidden=768, heads=12, neurons=1152),
    "large": Shape(layers=24, hidden=1024, heads=16, neurons=4096),
}


def random_ticket(heads: list[int], neurons: list[int], seed: int = 0) -> ek.Ticket:
    """A ticket of the paper's ratios with random units.

    Args:
        heads, neurons: how many units each layer has.
        seed: which units are kept, and how the neurons are spread over the layers.
    """
    generator = torch.Generator().manual_seed(seed)
    return draw(*([torch.rand(count, generator=generator) for count in counts] for counts in (heads, neurons)))
