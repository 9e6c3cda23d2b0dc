#!/usr/bin/env bash
# torch's FlopCounterMode counts nothing for scaled_dot_product_attention on a CPU.
#
# Versions:  torch 2.13.0, CPU.
# Expected:  what it counts for the same attention written as two products: 2 * 2 * B * H * S * S * D operations.
# Seen:      0 for scaled_dot_product_attention, which runs as _scaled_dot_product_flash_attention_for_cpu and has no
#            formula; the products written out are counted. A transformers model's count on a CPU so depends on
#            attn_implementation.
# Exits 0 while that is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PY'
import sys

import torch
from torch.utils.flop_counter import FlopCounterMode

q, k, v = torch.randn(3, 2, 4, 32, 16)
counts = []
for attention in (torch.nn.functional.scaled_dot_product_attention, lambda q, k, v: (q @ k.mT).softmax(-1) @ v):
    with FlopCounterMode(display=False) as counter:
        attention(q, k, v)
    counts.append(counter.get_total_flops())
print("scaled_dot_product_attention:", counts[0], "- written out:", counts[1])
sys.exit(counts != [0, 2 * 2 * 2 * 4 * 32 * 32 * 16])
PY
