"""The ops written out a second time, as naively as can be: one sequence, one head, one row at a time."""

from __future__ import annotations

import math

import torch

from earlybert_kernels.reference.counter_rng import kept_scale


def attention(q, k, v, lengths, lengths_q=None, gates=None, scale=None, keep=None, dropout_p=0.0, window=None):
    """Softmax attention of each sequence and head alone; `lengths` are host integers.

    With a `window` every query has to see a key.
    `keep`, bool (heads, queries, keys of the longest sequence or more), says which weights dropout keeps.
    """
    heads, size = q.shape[1:]
    scale = 1 / math.sqrt(size) if scale is None else scale
    rows, start, start_q = [], 0, 0
    for number, length in enumerate(lengths):
        length_q = length if lengths_q is None else lengths_q[number]
        per_head = []
        for h in range(heads):
            scores = q[start_q : start_q + length_q, h] @ k[start : start + length, h].T * scale
            if window is not None:
                near = (torch.arange(length_q)[:, None] - torch.arange(length)).abs() <= window
                scores = scores.masked_fill(~near, -math.inf)
            weights = torch.exp(scores - scores.max(dim=1, keepdim=True).values)
            weights = weights / weights.sum(dim=1, keepdim=True)
            if keep is not None:
                weights = weights * keep[h, start_q : start_q + length_q, :length] * kept_scale(dropout_p)
            out = weights @ v[start : start + length, h]
            per_head.append(out if gates is None else out * gates[h])
        rows.append(torch.stack(per_head, dim=1))
        start, start_q = start + length, start_q + length_q
    return torch.cat(rows)


def feed_forward(x, w_in, b_in, w_out, b_out, gates=None):
    """GELU by its definition, x * Phi(x)."""
    h = x @ w_in.T + b_in
    h = h * 0.5 * (1 + torch.erf(h / math.sqrt(2)))
    return (h if gates is None else h * gates) @ w_out.T + b_out


def masked_lm_loss(hidden, labels, weight, bias, ignore_index=-100):
    """Minus the log-probability of each label, averaged over the rows that have one."""
    losses = []
    for row, label in zip(hidden, labels.tolist(), strict=True):
        if label != ignore_index:
            logits = weight @ row + (0 if bias is None else bias)
            losses.append(torch.logsumexp(logits, 0) - logits[label])
    return sum(losses) / len(losses)
