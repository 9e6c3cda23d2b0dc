"""The least work an op can be done with: floating-point operations of its matrix products, bytes that must move.

Bytes count every tensor that goes in or comes out once, at its own width: the inputs are read, the outputs and the
gradients are written. What a backend keeps or recomputes between forward and backward is its own affair and does not
count, nor do biases of one row, labels and offsets. A multiplication with its addition is two operations. All counts
are of the units that are kept and of real tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MODES = ("forward", "backward", "full")


@dataclass(frozen=True)
class Work:
    """Attributes:
    flops: floating-point operations of the matrix products.
    bytes: read and written.
    """

    flops: int
    bytes: int

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def seconds(self, flops_per_second: float, bytes_per_second: float) -> float:
        """The time that a machine of these rates needs at least, arithmetic and memory overlapping."""
        return max(self.flops / flops_per_second, self.bytes / bytes_per_second)


WorkByMode = Mapping[str, Work]


def _with_full(forward: Work, backward: Work) -> WorkByMode:
    return {"forward": forward, "backward": backward, "full": forward + backward}


def attention(lengths: Sequence[int], heads: int, head_size: int, itemsize: int) -> WorkByMode:
    """Forward: two products, q k^T and p v, of n x n x D per head and sequence; reads q, k, v, writes the output.

    Backward: four products (for p, q, k and v; the scores are not counted a second time); reads q, k, v and the
    output's gradient, writes three gradients.
    """
    product = 2 * heads * head_size * sum(n * n for n in lengths)
    tensor = sum(lengths) * heads * head_size * itemsize
    return _with_full(Work(2 * product, 4 * tensor), Work(4 * product, 7 * tensor))


def feed_forward(tokens: int, hidden: int, neurons: int, itemsize: int) -> WorkByMode:
    """Forward: two products of T x E x F; reads x and both weights, writes the output.

    Backward: four; reads x, the output's gradient and both weights, writes the gradients of x and of both weights.
    """
    product = 2 * tokens * hidden * neurons
    activations, weights = tokens * hidden * itemsize, 2 * hidden * neurons * itemsize
    return _with_full(Work(2 * product, 2 * activations + weights), Work(4 * product, 3 * activations + 2 * weights))


def dropout_add_layer_norm(tokens: int, hidden: int, itemsize: int) -> WorkByMode:
    """No products. Forward reads x and the residual and writes the output.

    Backward reads the output's gradient and the normalised rows, writes the gradients of x and of the residual, which
    differ by the dropout.
    """
    tensor = tokens * hidden * itemsize
    return _with_full(Work(0, 3 * tensor), Work(0, 4 * tensor))


def attention_sublayer(lengths: Sequence[int], hidden: int, heads: int, head_size: int, itemsize: int) -> WorkByMode:
    """That of attention, and of four linear layers around it: products of T x E x HD, one forward and two backward.

    Forward reads x and the weights and writes the output; backward reads x, the output's gradient and the weights and
    writes the gradients of x and of the weights.
    """
    products = attention(lengths, heads, head_size, itemsize)
    linear = 4 * 2 * sum(lengths) * hidden * heads * head_size
    tokens, weights = sum(lengths) * hidden * itemsize, 4 * hidden * heads * head_size * itemsize
    return _with_full(
        Work(products["forward"].flops + linear, 2 * tokens + weights),
        Work(products["backward"].flops + 2 * linear, 3 * tokens + 2 * weights),
    )


def embedding_layer_norm(tokens: int, hidden: int, itemsize: int) -> WorkByMode:
    """No products. Forward reads a row of the word table for each token and writes the output.

    Backward reads the output's gradient and the row again, and writes a row of the table's gradient. The positions' and
    types' tables are small, and the zeros of the rows that do not occur need not be written.
    """
    tensor = tokens * hidden * itemsize
    return _with_full(Work(0, 2 * tensor), Work(0, 3 * tensor))


def masked_lm_loss(tokens: int, labelled: int, hidden: int, vocabulary: int, itemsize: int) -> WorkByMode:
    """Forward: one product of L x E x V, L being the labelled tokens; reads their rows and the weight.

    Backward: two; reads the same, writes the gradients of all rows (zero where there is no label) and of the weight.
    """
    product = 2 * labelled * hidden * vocabulary
    rows, weight = labelled * hidden * itemsize, hidden * vocabulary * itemsize
    return _with_full(Work(product, rows + weight), Work(2 * product, rows + 2 * weight + tokens * hidden * itemsize))


def training_step(lengths: Sequence[int], layers: int, hidden: int, weights: int) -> Work:
    """The products of an encoder, forward and backward: all linear layers and attention of all tokens. No bytes.

    `weights` are those in the linear layers of one encoder layer.
    """
    linear = 6 * sum(lengths) * weights
    return Work(layers * (linear + attention(lengths, 1, hidden, 1)["full"].flops), 0)


def decoder_step(labelled: int, hidden: int, vocabulary: int) -> Work:
    """The products of a masked language model's head and decoder on labelled tokens, forward and backward. No bytes."""
    return Work(6 * labelled * hidden * (hidden + vocabulary), 0)


def adam(parameters: int, itemsize: int) -> Work:
    """One step of AdamW or LAMB: reads parameter, gradient and two moments, writes all but the gradient."""
    return Work(0, 7 * parameters * itemsize)
