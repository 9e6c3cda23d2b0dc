"""What goes between an op and its backends: what its two halves take and return, by name and in order.

For every differentiable op four tuples: the inputs of forward; its results, the op's own first; what is saved of both,
which backward takes behind the gradient of the op's result; and the gradients that it returns, named as the inputs.
The dispatcher's schemas are made of them (`ops.declare`). The names are those of csrc's structs where these have them.

`saves` says whether a backward may come. Where none can, what only that would be given is neither written nor returned:
the dispatcher's op has empty tensors in its place, whatever a backend returned.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class AttentionInputs(NamedTuple):
    """With a seed, the weight of query t (its packed row), key j (its place in the sequence) and head h is kept where
    `counter_rng.keep_mask(seed, (H, Tq, max_seqlen), p)[h, t, j]` is.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    cu_seqlens_q: Tensor
    max_seqlen_q: int
    head_mask: Tensor | None
    head_gates: Tensor | None
    seed: Tensor | None
    dropout_p: float
    scale: float
    window: int | None
    saves: bool = True


class AttentionResults(NamedTuple):
    """`(Tq, H, D)`, and float32 `(H, Tq)`."""

    out: Tensor
    logsumexp: Tensor


class AttentionSaved(NamedTuple):
    """Both results and all inputs."""

    out: Tensor
    logsumexp: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    cu_seqlens_q: Tensor
    max_seqlen_q: int
    head_mask: Tensor | None
    head_gates: Tensor | None
    seed: Tensor | None
    dropout_p: float
    scale: float
    window: int | None


class AttentionGrads(NamedTuple):
    """That of the gates is empty without gates."""

    q: Tensor
    k: Tensor
    v: Tensor
    head_gates: Tensor


class FeedForwardInputs(NamedTuple):
    """`active` are the neurons to compute, as indices or as a mask.

    A backend that rounds factors is given float32 weights also where x is bfloat16.
    """

    x: Tensor
    w_in: Tensor
    b_in: Tensor
    w_out: Tensor
    b_out: Tensor
    active: Tensor | None
    gates: Tensor | None
    activation: str
    saves: bool = True


class FeedForwardResults(NamedTuple):
    """`(T, E)`, and `(T, computed neurons)`."""

    out: Tensor
    preactivation: Tensor


class FeedForwardSaved(NamedTuple):
    """All but the biases."""

    preactivation: Tensor
    x: Tensor
    w_in: Tensor
    w_out: Tensor
    active: Tensor | None
    gates: Tensor | None
    activation: str


class FeedForwardGrads(NamedTuple):
    """That of the gates is empty without gates."""

    x: Tensor
    w_in: Tensor
    b_in: Tensor
    w_out: Tensor
    b_out: Tensor
    gates: Tensor


class DropoutAddLayerNormInputs(NamedTuple):
    """With a seed, `counter_rng.keep_mask(seed, x.shape, dropout_p)` is kept.

    x and the residual are of one dtype or the residual is float32; weight and bias of the residual's or float32.
    """

    x: Tensor
    residual: Tensor
    weight: Tensor
    bias: Tensor
    seed: Tensor | None
    dropout_p: float
    eps: float
    saves: bool = True


class DropoutAddLayerNormResults(NamedTuple):
    """As the residual, and two statistics a row in float32."""

    out: Tensor
    mean: Tensor
    rstd: Tensor


class DropoutAddLayerNormSaved(NamedTuple):
    """What backward takes."""

    x: Tensor
    residual: Tensor
    weight: Tensor
    mean: Tensor
    rstd: Tensor
    seed: Tensor | None
    dropout_p: float


class DropoutAddLayerNormGrads(NamedTuple):
    """That of x is empty where it equals the residual's: without a seed, in one dtype."""

    x: Tensor
    residual: Tensor
    weight: Tensor
    bias: Tensor


class EmbeddingLayerNormInputs(NamedTuple):
    """`padding_id` is -1 for none."""

    input_ids: Tensor
    position_ids: Tensor
    token_type_ids: Tensor
    word: Tensor
    position: Tensor
    token_type: Tensor
    weight: Tensor
    bias: Tensor
    seed: Tensor | None
    padding_id: int
    dropout_p: float
    eps: float
    saves: bool = True


class EmbeddingLayerNormResults(NamedTuple):
    """`(T, E)`, and two statistics a row in float32."""

    out: Tensor
    mean: Tensor
    rstd: Tensor


class EmbeddingLayerNormSaved(NamedTuple):
    """What backward takes."""

    mean: Tensor
    rstd: Tensor
    input_ids: Tensor
    position_ids: Tensor
    token_type_ids: Tensor
    word: Tensor
    position: Tensor
    token_type: Tensor
    weight: Tensor
    seed: Tensor | None
    padding_id: int
    dropout_p: float


class EmbeddingLayerNormGrads(NamedTuple):
    """Of the tables and the norm."""

    word: Tensor
    position: Tensor
    token_type: Tensor
    weight: Tensor
    bias: Tensor


class MaskedLmLossInputs(NamedTuple):
    """`rows` are the labelled ones, and after them any number of -1."""

    hidden: Tensor
    labels: Tensor
    rows: Tensor
    weight: Tensor
    bias: Tensor | None
    bfloat16: bool


class MaskedLmLossResults(NamedTuple):
    """float32 without dimensions, and `(rows, vocabulary)`, whose rows may be longer in memory."""

    loss: Tensor
    grad_logits: Tensor


class MaskedLmLossSaved(NamedTuple):
    """What backward takes."""

    grad_logits: Tensor
    hidden: Tensor
    rows: Tensor
    weight: Tensor
    bfloat16: bool


class MaskedLmLossGrads(NamedTuple):
    """That of the bias is computed also without one."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor


class AttentionSublayerInputs(NamedTuple):
    """Under autocast x and the norm are float32 and the eight linear layers' tensors in autocast's dtype, which is that
    of the products; `x_low` is x in it, or None. With `return_low` the output is wanted in it as well. Or all are
    float32, and with `bfloat16` the kernels round what products take.
    """

    x: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    w_q: Tensor
    b_q: Tensor
    w_k: Tensor
    b_k: Tensor
    w_v: Tensor
    b_v: Tensor
    w_out: Tensor
    b_out: Tensor
    norm_weight: Tensor
    norm_bias: Tensor
    active_heads: Tensor | None
    head_gates: Tensor | None
    attention_seed: Tensor | None
    seed: Tensor | None
    head_size: int
    first_token_only: bool
    attention_dropout_p: float
    dropout_p: float
    eps: float
    x_low: Tensor | None
    return_low: bool
    bfloat16: bool
    saves: bool = True


class AttentionSublayerResults(NamedTuple):
    """The output; q, k and v as the backend keeps them; the attention's result, and the output projection's; the output
    in the dtype of the products, empty where that is its own or it is not wanted.
    """

    out: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    context: Tensor
    logsumexp: Tensor
    h: Tensor
    mean: Tensor
    rstd: Tensor
    low: Tensor


class AttentionSublayerSaved(NamedTuple):
    """All but the output and its copy, that of x, the biases and eps."""

    q: Tensor
    k: Tensor
    v: Tensor
    context: Tensor
    logsumexp: Tensor
    h: Tensor
    mean: Tensor
    rstd: Tensor
    x: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    w_q: Tensor
    w_k: Tensor
    w_v: Tensor
    w_out: Tensor
    norm_weight: Tensor
    active_heads: Tensor | None
    head_gates: Tensor | None
    attention_seed: Tensor | None
    seed: Tensor | None
    head_size: int
    first_token_only: bool
    attention_dropout_p: float
    dropout_p: float
    bfloat16: bool


class AttentionSublayerGrads(NamedTuple):
    """That of the gates is empty without gates."""

    x: Tensor
    w_q: Tensor
    b_q: Tensor
    w_k: Tensor
    b_k: Tensor
    w_v: Tensor
    b_v: Tensor
    w_out: Tensor
    b_out: Tensor
    norm_weight: Tensor
    norm_bias: Tensor
    head_gates: Tensor


class FeedForwardSublayerInputs(NamedTuple):
    """Under autocast x and the norm are float32 and the four linear layers' tensors in autocast's dtype, which is that
    of the products; `x_low` is x in it, or None. With `return_low` the output is wanted in it as well. Or all are
    float32, and with `bfloat16` the kernels round what products take.
    """

    x: Tensor
    w_in: Tensor
    b_in: Tensor
    w_out: Tensor
    b_out: Tensor
    norm_weight: Tensor
    norm_bias: Tensor
    active_neurons: Tensor | None
    neuron_gates: Tensor | None
    seed: Tensor | None
    activation: str
    dropout_p: float
    eps: float
    x_low: Tensor | None
    return_low: bool
    bfloat16: bool
    saves: bool = True


class FeedForwardSublayerResults(NamedTuple):
    """The output, the preactivations, the block's output and the norm's statistics; the output in the dtype of the
    products, empty where that is its own or it is not wanted.
    """

    out: Tensor
    preactivation: Tensor
    h: Tensor
    mean: Tensor
    rstd: Tensor
    low: Tensor


class FeedForwardSublayerSaved(NamedTuple):
    """All but the output and its copy, that of x, the biases and eps."""

    preactivation: Tensor
    h: Tensor
    mean: Tensor
    rstd: Tensor
    x: Tensor
    w_in: Tensor
    w_out: Tensor
    norm_weight: Tensor
    active_neurons: Tensor | None
    neuron_gates: Tensor | None
    seed: Tensor | None
    activation: str
    dropout_p: float
    bfloat16: bool


class FeedForwardSublayerGrads(NamedTuple):
    """That of the gates is empty without gates."""

    x: Tensor
    w_in: Tensor
    b_in: Tensor
    w_out: Tensor
    b_out: Tensor
    norm_weight: Tensor
    norm_bias: Tensor
    neuron_gates: Tensor
