#!/usr/bin/env bash
# Trainer in several processes multiplies the loss of a sequence classifier by their number.
#
# Versions:  transformers 5.23.0, accelerate 1.15.0, torch 2.13.0, CPU, gloo.
# Expected:  two processes with 4 rows each log the mean loss of the 8 rows, and clip the gradient of that mean, as one
#            process with 8 rows does.
# Seen:      the loss that is logged is twice as large, and so is the gradient before it is clipped, by
#            average_tokens_across_devices, which is on by default: it makes up for losses that are sums over the number of
#            labels of all processes, and takes every model whose forward has keyword arguments for one of those. A
#            classifier's has, and its loss is a mean. With average_tokens_across_devices=False both are as expected.
# Exits 0 while that is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 numpy==2.4.6
cd "$work"
cat > train.py <<'PY'
import json
import sys

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

rows_each, average, out = int(sys.argv[1]), sys.argv[2] == "True", sys.argv[3]
torch.manual_seed(0)
config = BertConfig(
    vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)
model = BertForSequenceClassification(config)
rows = [{"input_ids": torch.randint(1, 30, (6,)), "labels": torch.tensor(row % 2)} for row in range(8)]
arguments = TrainingArguments(
    output_dir="run", per_device_train_batch_size=rows_each, max_steps=1, logging_steps=1, learning_rate=0.0,
    save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True, average_tokens_across_devices=average,
)
trainer = Trainer(model=model, args=arguments, train_dataset=rows)
trainer.train()
if trainer.is_world_process_zero():
    first = trainer.state.log_history[0]
    json.dump([first["loss"], float(first["grad_norm"])], open(out, "w"))
PY
one() { OMP_NUM_THREADS=1 "$work/venv/bin/python" train.py 8 True one.json; }
two() { OMP_NUM_THREADS=1 "$work/venv/bin/torchrun" --nproc-per-node 2 train.py 4 "$1" "$2"; }
one > log 2>&1 && two True two.json >> log 2>&1 && two False off.json >> log 2>&1 || { cat log; exit 1; }
"$work/venv/bin/python" - <<'PY'
import json
import sys

one, two, off = (json.load(open(f"{name}.json")) for name in ("one", "two", "off"))
print("loss and gradient's norm in one process:", one)
print("in two, by default:                     ", two)
print("average_tokens_across_devices=False:    ", off)


def near(pair, factor):
    return all(abs(seen / (factor * expected) - 1) < 0.01 for seen, expected in zip(pair, one))


sys.exit(not (near(two, 2) and near(off, 1)))
PY
