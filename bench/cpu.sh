#!/usr/bin/env bash
# All CPU measurements of docs/results.md, in about 37 minutes on 2 cores that do nothing else:
#   bench/cpu.sh RESULTS_DIR MODEL SST2_DIR SQUAD_DIR
# MODEL is a folder or hub name of a BERT; the others hold the files of the distributions. Goes on after a failure and
# says at the end what failed; `python -m bench.report RESULTS_DIR/*.json` prints all tables again.
set -uo pipefail
results=$1 model=$2 sst2=$3 squad=$4
cd "$(dirname "$0")/.."
mkdir -p "$results"
failed=()

step() { # name, arguments
  local name=$1
  shift
  echo "== $name"
  python -m bench.step "$@" --output "$results/step-$name.json" || failed+=("$name")
}

python -m pytest bench/ -q --benchmark-only --benchmark-quiet --benchmark-json="$results/ops-minilm.json" ||
  failed+=(ops-minilm)
python -m pytest bench/ -q --benchmark-only --benchmark-quiet --sizes base --lengths sst2 \
  --benchmark-json="$results/ops-base.json" || failed+=(ops-base)
step minilm-sst2 --model "$model" --lengths sst2 --data-dir "$sst2" --rounds 20 --memory
uncompiled="stock converted search ticket-masked ticket-compact ticket-stock"
step minilm-sst2-padded-to-128 --model "$model" --lengths sst2 --data-dir "$sst2" --padding max_length --rounds 10 \
  --variants $uncompiled
step minilm-128 --shape minilm --lengths full --rounds 12 --memory
step base-128 --shape base --lengths full --batch-size 8 --rounds 12 --variants $uncompiled --memory
step minilm-squad --model "$model" --lengths squad --data-dir "$squad" --max-length 384 --batch-size 8 --rounds 10 \
  --variants $uncompiled
step base-sst2 --shape base --lengths sst2 --rounds 10 --variants $uncompiled

forward() { # name, arguments
  local name=$1
  shift
  echo "== forward $name"
  python -m bench.forward --model "$model" "$@" --output "$results/forward-$name.json" || failed+=("forward-$name")
}

forward minilm-sst2 --lengths sst2 --data-dir "$sst2" --rounds 20
forward minilm-sentence --lengths full --max-length 16 --batch-size 1 --rounds 60

for name in "${failed[@]}"; do echo "FAILED: $name"; done
exit ${#failed[@]}
