#!/usr/bin/env bash
# train_sampling_strategy="batch_rebalance" of Trainer gives the examples of a classifier different weights.
#
# Versions:  transformers 5.23.0, accelerate 1.15.0, torch 2.13.0, CPU.
# Expected:  it changes which examples are computed together, and the step stays that of the mean loss of all of them, up
#            to a factor (Trainer adds up the means of accumulated batches of a classifier and does not divide).
# Seen:      its batches have different numbers of examples, 2 long ones and 6 short ones of 8 here, and Trainer adds up
#            their means: a long example counts three times as much as a short one. The gradient of the classifier's
#            weight has a cosine of 0.93 to that of the mean over the 8; with "random" batches of 4 it is 1.00.
# Exits 0 while that is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6 transformers==5.23.0 accelerate==1.15.0
cat > "$work/weights.py" <<'PY'
import sys

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

torch.manual_seed(0)
config = BertConfig(
    vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=2,
    max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)
model = BertForSequenceClassification(config)
lengths = [60, 58, 8, 7, 6, 6, 5, 5]
data = [{"input_ids": torch.randint(1, 50, (n,)).tolist(), "labels": i % 2} for i, n in enumerate(lengths)]


def collate(features):
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(f["input_ids"]) for f in features], batch_first=True)
    labels = torch.tensor([f["labels"] for f in features])
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels}


def gradient(*batches):
    model.zero_grad()
    for batch in batches:
        model(**collate(batch)).loss.backward()
    return model.classifier.weight.grad.flatten().clone()


class Recorded(Trainer):
    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        self.seen = self.model.classifier.weight.grad.flatten().clone()
        return loss


def by_trainer(strategy):
    arguments = TrainingArguments(
        sys.argv[1], max_steps=1, per_device_train_batch_size=4, gradient_accumulation_steps=2, learning_rate=0.0,
        train_sampling_strategy=strategy, max_grad_norm=0.0, use_cpu=True, report_to="none", save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Recorded(model, arguments, train_dataset=data, data_collator=collate)
    trainer.train()
    return trainer.seen


mean = gradient(data)
cosine = {s: torch.cosine_similarity(by_trainer(s), mean, dim=0).item() for s in ("random", "batch_rebalance")}
print({strategy: round(value, 3) for strategy, value in cosine.items()})
as_seen = torch.allclose(by_trainer("batch_rebalance"), gradient(data[:2], data[2:]), rtol=1e-4)
sys.exit(not (cosine["random"] > 0.999 and cosine["batch_rebalance"] < 0.95 and as_seen))
PY
"$work/venv/bin/python" "$work/weights.py" "$work/out"
