#!/usr/bin/env bash
# A config.json that names its classes by label2id alone is read with the names LABEL_0, LABEL_1, ...
#
# Versions:  transformers 5.23.0.
# Expected:  id2label is made of label2id, its inverse; or the file is refused.
# Seen:      label2id of the file is dropped, and both fields are the defaults; nothing is said. With num_labels beside an
#            id2label of another length id2label is dropped too, after a line that says that they do not fit.
# Exits 0 while that is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check transformers==5.23.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
import json
import sys
from pathlib import Path

from transformers import AutoConfig

names = {"negative": 0, "positive": 1}
found = []
for fields in ({"label2id": names}, {"id2label": {"0": "negative", "1": "positive"}, "num_labels": 3}):
    Path("config.json").write_text(json.dumps({"model_type": "bert", **fields}))
    config = AutoConfig.from_pretrained(".")
    found.append((config.id2label, config.label2id))
    print(fields, "is read as", *found[-1])
sys.exit(not (
    found[0] == ({0: "LABEL_0", 1: "LABEL_1"}, {"LABEL_0": 0, "LABEL_1": 1})
    and "negative" not in found[1][0].values()
))
PY
