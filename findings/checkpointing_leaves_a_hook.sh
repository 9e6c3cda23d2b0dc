#!/usr/bin/env bash
# Gradient checkpointing that was switched on and off again leaves a hook in a BERT.
#
# Versions:  transformers 5.23.0, torch 2.13.0, CPU.
# Expected:  after gradient_checkpointing_enable() and gradient_checkpointing_disable() a model is what it was.
# Seen:      a forward hook stays on the word embeddings, which makes their output require gradients: with the embeddings
#            frozen it does so from then on, where that of a model that was never touched does not.
# Exits 0 while that is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 transformers==5.23.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PY'
import sys
import warnings

import torch
from transformers import BertConfig, BertModel

warnings.simplefilter("ignore")
config = BertConfig(
    vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
    max_position_embeddings=16,
)
model = BertModel(config)
words = model.embeddings.word_embeddings
words.requires_grad_(False)
ids = torch.arange(8)[None]
before = len(words._forward_hooks), words(ids).requires_grad
model.gradient_checkpointing_enable()
model.gradient_checkpointing_disable()
after = len(words._forward_hooks), words(ids).requires_grad
print("hooks on the word embeddings, and whether their output requires a gradient:", before, "then", after)
sys.exit(not (before == (0, False) and after == (1, True)))
PY
