"""A model family: everything the library knows about one family of transformers models, as a value.

What is done to a model (checks, swapping modules, padding-free forwards, compact classes) is written once, in the
other modules of this package, which ask the family and know none by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..nn import LayerParts, PostNormParts


def compact_type(model_type: str) -> str:
    """The model type of a family's compact models, by that of the stock ones."""
    return f"compact_{model_type}"


class Rows(Enum):
    """The rows of the last layer that a head reads."""

    #: The first token of each sequence, pooled or not; the last layer need compute no other.
    FIRST = auto()
    ALL = auto()
    #: All, and the first one pooled.
    ALL_AND_POOLED = auto()


class Labels(Enum):
    """What a head's labels belong to, and with it which of them stand on padding."""

    #: A sequence, or a choice: none does.
    SEQUENCE = auto()
    TOKEN = auto()
    #: A token that is predicted from the one before.
    NEXT_TOKEN = auto()
    #: The positions at which a span begins and ends.
    SPAN = auto()


@dataclass(frozen=True)
class Decoder:
    """The part of a masked language model that can be computed for some rows alone.

    Attributes:
        transform: the head's module and hidden states `(rows, E)` -> what the decoder multiplies, `(rows, E)`.
        linear: path in the model of the linear layer that makes logits of it.
    """

    transform: Callable[[Any, Tensor], Tensor]
    linear: str


@dataclass(frozen=True)
class Head:
    """A head class of transformers.

    Attributes:
        stock: the class.
        auto_class: the class of transformers that loads it for its task, `"AutoModelForMaskedLM"`, say.
        rows: which rows of the last layer it reads.
        labels: what its labels belong to.
        decoder: of a masked language model.
        takes_packed: whether a packed batch has a meaning for it.
        classifier: of a classifier, path in the model of the linear layer with a row for each label.
        averages: whether a model of this config reads the mean of all tokens, where `rows` says the first one.
    """

    stock: type[PreTrainedModel]
    auto_class: str
    rows: Rows
    labels: Labels = Labels.SEQUENCE
    decoder: Decoder | None = None
    takes_packed: bool = True
    classifier: str = "classifier"
    averages: Callable[[Any], bool] = lambda config: False


@dataclass(frozen=True)
class Embeddings:
    """Embeddings that are the sum of tables, a layer norm and dropout, which one op computes.

    Attributes:
        stock: their class.
        word, norm, dropout: its children of these names.
        position: the second table; None where layers take positions by themselves.
        token_type: the third table; None where there are no token types, and any that are given change nothing.
    """

    stock: type[nn.Module]
    word: str = "word_embeddings"
    position: str | None = "position_embeddings"
    token_type: str | None = "token_type_embeddings"
    norm: str = "LayerNorm"
    dropout: str = "dropout"


@dataclass(frozen=True)
class Layer:
    """What an encoder layer is made of, as paths in it: `"attention.self.query"`.

    Attributes:
        classes: the very class of each module that is no part: the layer itself at `""`, and what holds its parts.
        parts: the modules that `kind` names, by its names; their classes are those that it states. A dropout
            that the family does not have is left out.
        activation: the module that computes the feed-forward's activation.
        kind: what the layer is made of, as a class.
        facts: of a stock layer, the parts that are no modules, besides the head size and the activation.
        head_size: attribute of the self-attention that says how many values a head has.
        heads: attribute of it that says how many heads it has; None where it has none.
        width: attribute of it that says how wide they are together; None where it has none.
    """

    classes: Mapping[str, type[nn.Module]]
    parts: Mapping[str, str]
    activation: str
    kind: type[LayerParts] = PostNormParts
    facts: Callable[[Any], dict[str, Any]] = lambda layer: {}
    head_size: str = "attention_head_size"
    heads: str | None = "num_attention_heads"
    width: str | None = "all_head_size"


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelFamily:
    """Everything the library knows about one family of transformers models.

    Attributes:
        name: what messages call it.
        config: its class of configs; the model type is that of it.
        tokenizer: the class that `AutoTokenizer` takes for compact models.
        pretrained: the class that its models derive from.
        base: its base model, embeddings and encoder.
        encoder: path in the base model of the module that runs the layers, registered in it as `layer`; or of the list
            of them, where there is no such module.
        encoder_class: the very class of that module, or of the list.
        layer: what a layer is made of.
        embeddings: what the fused op computes; None where it does not, and the base model's own are called.
        rotary: path in the base model of the module that makes rotary positions, of the name that a layer has for them.
        final_norm: path in it of the norm behind the last layer, in models that have it.
        around: the very class of each module between the base model and the encoder, by its path; it is not run.
        shares_layer: whether all config.num_hidden_layers of its layers are one, which is registered once.
        embeddings_projection: of a base model, the layer that the embeddings go through, or None.
        pool: of a base model with a pooler and the first token of each sequence `(B, 1, E)`, its pooled output.
        counts_tokens: whether positions count the tokens that are not config.pad_token_id, from that number + 1 on,
            those standing at the number itself; else they are columns, from 0 on.
        needed: fields of the config that have to have these values.
        activations: by the names that transformers gives the activations that the ops know, the ops' names.
        activation_field, neurons_field: the config's fields that hold the name and the number of neurons.
        size_fields: the config's field that says how large a Parameter is, by a part of its name; the first that fits.
        heads: its head classes.
    """

    name: str
    config: type[PreTrainedConfig]
    tokenizer: type[PreTrainedTokenizerBase]
    pretrained: type[PreTrainedModel]
    base: type[PreTrainedModel]
    encoder: str
    encoder_class: type[nn.Module]
    layer: Layer
    embeddings: Embeddings | None
    around: Mapping[str, type[nn.Module]] = field(default_factory=dict)
    shares_layer: bool = False
    embeddings_projection: Callable[[Any], nn.Module | None] = lambda base: None
    pool: Callable[[Any, Tensor], Tensor] = lambda base, first: base.pooler(first)
    rotary: str | None = None
    final_norm: str | None = None
    counts_tokens: bool = False
    needed: Mapping[str, Any] = field(default_factory=dict)
    activations: Mapping[str, str]
    activation_field: str = "hidden_act"
    neurons_field: str = "intermediate_size"
    size_fields: Mapping[str, str]
    heads: tuple[Head, ...]

    @property
    def model_type(self) -> str:
        """The model type of stock models."""
        return self.config.model_type

    @property
    def compact_type(self) -> str:
        """The model type of compact ones."""
        return compact_type(self.model_type)

    @property
    def auto_classes(self) -> Iterator[tuple[str, type[PreTrainedModel]]]:
        """Every class of models, with the class of transformers that loads it."""
        yield "AutoModel", self.base
        yield from ((head.auto_class, head.stock) for head in self.heads)

    def neurons(self, config: PreTrainedConfig) -> int:
        """Feed-forward neurons of a dense layer."""
        return getattr(config, self.neurons_field)

    def num_layers(self, config: PreTrainedConfig) -> int:
        """The layers that a model has, each with Parameters of its own."""
        return 1 if self.shares_layer else config.num_hidden_layers

    def rounds(self, config: PreTrainedConfig) -> int:
        """How often a model runs them all, one after the other."""
        return config.num_hidden_layers if self.shares_layer else 1

    def units(self, config: PreTrainedConfig) -> tuple[list[int], list[int]]:
        """Heads and neurons of each layer of a dense model."""
        layers = self.num_layers(config)
        return [config.num_attention_heads] * layers, [self.neurons(config)] * layers

    def first_position(self, config: Any) -> int:
        """The position of the first token of a sequence."""
        return config.pad_token_id + 1 if self.counts_tokens else 0

    @property
    def layers(self) -> str:
        """Path in a base model of the list of its layers."""
        return self.encoder if issubclass(self.encoder_class, nn.ModuleList) else f"{self.encoder}.layer"

    def longest(self, config: Any) -> int:
        """Tokens of the longest sequence that a model has positions for."""
        return config.max_position_embeddings - self.first_position(config)

    def encoder_of(self, base: nn.Module) -> Any:
        """The module of a base model that runs its layers, stock (an `encoder_class`) or converted."""
        return base.get_submodule(self.encoder)

    def layers_of(self, base: nn.Module) -> nn.ModuleList:
        """The encoder layers of a base model."""
        return base.get_submodule(self.layers)  # type: ignore[return-value]

    def named_layers_of(self, base: nn.Module) -> list[tuple[str, nn.Module]]:
        """The encoder layers of a base model, each with its path in it."""
        return [(f"{self.layers}.{number}", layer) for number, layer in enumerate(self.layers_of(base))]

    def head_of(self, module: nn.Module) -> Head | None:
        """The head that `module` is, by its class and by the forward of its class; None if it is none."""
        for head in self.heads:
            if isinstance(module, head.stock) and type(module).forward is head.stock.forward:
                return head
        return None
