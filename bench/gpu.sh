#!/usr/bin/env bash
# Everything that wants a GPU, in under 10 minutes on a machine with one NVIDIA GPU, 16 cores and no network:
#   bench/gpu.sh RESULTS_DIR
# Tests on the GPU, compute-sanitizer, the ops, whole steps, new tables of matrix products and of backends; then
# report.md with all tables and bounds.md with what is to be reached. Needs torch for CUDA, Triton, transformers, pytest,
# pytest-benchmark; nvcc, pybind11 and ninja where the CUDA extension is to be built (in place, unless it lies there).
# Goes on after a failure, says at the end what failed, and exits with the number of failures.
#
#   PARTS="setup check ops steps tune report"  what is run, default all; `check` is tests and sanitizer, with everything
#                                              that the rest compiles compiled beside them
#   SECONDS_IN_ALL=550                         what has not ended by then is ended, but for the tables
#   EARLYBERT_COMMIT=...                       what results are to say, where there is no git checkout
#   REHEARSE=1                                 without a GPU: every command, at toy sizes on the CPU (20 minutes on 2
#                                              cores); the numbers mean nothing, and there is nothing to sanitize
set -uo pipefail
[ $# = 1 ] || { sed -n '2,3s/^# //p' "$0"; exit 64; }
mkdir -p "$1"
results=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD:$PWD/python${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
python=$(command -v python3)
rehearse=${REHEARSE:-0}
parts=" ${PARTS:-setup check ops steps tune report} "
deadline=${SECONDS_IN_ALL:-550}
patience=1 # times as long as on the machine this is for
scratch=$(mktemp -d)
failures=$scratch/failures
touch "$failures"
SECONDS=0

if [ "$rehearse" = 1 ]; then
  patience=20
  deadline=$((patience * deadline))
elif ! $python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "torch sees no GPU (REHEARSE=1 tries everything out without one)"
  exit 1
fi

wanted() { [[ $parts == *" $1 "* ]]; }

# Runs a command, its output into NAME.log; for SECONDS at most, and not beyond the end.
run() { # name, seconds, command
  local name=$1 limit=$((patience * $2)) left=$((deadline - SECONDS)) status
  shift 2
  if ((left < 5)); then
    echo "$name: no time was left" >>"$failures"
    return 1
  fi
  timeout -k 5 $((limit < left ? limit : left)) "$@" >"$results/$name.log" 2>&1
  status=$?
  echo "== $name: done at $SECONDS s, exit status $status"
  ((status == 0)) && return 0
  echo "$name: exit status $status$( ((status == 124 || status == 137)) && echo ', out of time')" >>"$failures"
  tail -n 12 "$results/$name.log" | cut -c -300
  return "$status"
}

# tests/ops/test_x.py as a part of a file's name.
slug() { tr / - <<<"${1:6:-3}"; }

# One process for a file of tests: most of their time goes into compiling. That a file has none is no failure.
tests() { # name, arguments of pytest
  local name=tests-$1
  shift
  while (($(jobs -rp | wc -l) >= $(nproc))); do wait -n; done
  run "$name" 170 bash -c '"$@"; status=$?; exit $((status == 5 ? 0 : status))' - \
    $python -m pytest -q -rfE --tb=short --maxfail=20 -p no:cacheprovider -o junit_family=xunit2 \
    --junitxml="$results/$name.xml" "$@" &
}

bench=($python -m pytest -q --tb=short -p no:cacheprovider --benchmark-only --benchmark-quiet)
ops() { # name, seconds, arguments of pytest
  local name=ops-$1 limit=$2
  shift 2
  run "$name" "$limit" "${bench[@]}" "${problems[@]}" --rounds 20 -k "$rows" --benchmark-json="$results/$name.json" "$@"
}
attention=(bench/bench_attention.py --lengths 128 512 --units dense masked)
packed=(bench/bench_attention.py --lengths sst2 --units dense --dropout 0)
blocks=(bench/bench_feed_forward.py bench/bench_dropout_add_layer_norm.py --lengths 128 --modes forward full)
others=(bench/bench_attention_sublayer.py bench/bench_feed_forward_sublayer.py bench/bench_lamb.py bench/bench_adamw.py)
others+=(bench/bench_embedding_layer_norm.py bench/bench_masked_lm_loss.py bench/bench_whole_model.py --lengths 128)

if [ "$rehearse" = 1 ]; then
  problems=(--sizes tiny --dtype float32 --tokens 64)
  rows="not compile" # takes minutes on a CPU
  full="--shape tiny --lengths full --batch-size 4"
  padded="--shape tiny --lengths sst2 --padding max_length --batch-size 8"
  small="--shape tiny --lengths sst2 --batch-size 4"
  compiled="" # takes minutes on a CPU
  tune=(env TRITON_INTERPRET=1 $python -m bench.tune --shape tiny --tokens 16)
else
  problems=(--sizes base --dtype bfloat16 --tokens 16384)
  # Of all units, every way to compute the op: the table of backends is made of these.
  rows="dense or not (compile or reference)"
  full="--shape base --lengths full --batch-size 256 --dtype bfloat16"
  # 32768 real tokens on average, 314880 with padding.
  padded="--shape base --lengths sst2 --padding max_length --batch-size 2460 --dtype bfloat16"
  small="--shape base --lengths sst2 --batch-size 32 --dtype bfloat16"
  compiled="stock-compile"
  tune=($python -m bench.tune)
fi
full+=" --variants stock $compiled converted search ticket-masked ticket-compact converted-captured search-captured"
full+=" ticket-compact-captured"
padded+=" --variants $compiled converted ticket-compact" # captured steps keep memory, and stock needs it all
small+=" --variants stock converted ticket-compact converted-captured ticket-compact-captured"

if wanted setup; then
  suffix=$($python -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
  if [ -e earlybert_kernels/_cuda"$suffix" ]; then
    echo "== build: the CUDA extension is there already"
  else # for the GPU that is here
    run build 150 env PATH="$PATH:/usr/local/cuda/bin" $python setup.py build_ext --inplace
  fi
  run env 60 $python -m earlybert_kernels.env
  { nvidia-smi; nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,temperature.gpu,power.draw,memory.used \
    --format=csv; git log -1 --format=%H; } >>"$results/env.log" 2>&1
  cat "$results/env.log"
  for module in pytest pytest_benchmark; do
    $python -c "import $module" 2>/dev/null || echo "$module: it is not installed" >>"$failures"
  done
fi

if wanted check; then
  # What is compiled now is found in caches when it is timed.
  {
    [ "$rehearse" = 1 ] || tests real_sizes tests/ops/triton/test_real_sizes.py
    run compile-full 120 $python -m bench.step $full --rounds 1
    wait
    run compile-padded 90 $python -m bench.step $padded --rounds 1 # takes nearly all of the GPU's memory
  } &
  run compile-tune 170 "${tune[@]}" --output "$scratch/products.json" &
  run sanitize 200 $python tests/sanitize_gpu.py &
  for group in attention packed blocks others; do
    [ "$rehearse" = 1 ] && continue
    declare -n arguments=$group
    run "compile-ops-$group" 170 "${bench[@]}" "${problems[@]}" --rounds 1 -k "dense and compile" "${arguments[@]}" &
  done
  for file in tests/ops/{triton,cuda}/test_*.py; do
    [[ $file == */triton/test_@(real_sizes|inspect).py ]] || tests "$(slug "$file")" "$file"
  done
  tests capture tests/models/test_capture.py tests/models/test_packed.py
  for file in tests/ops/test_*.py tests/test_optim.py; do
    tests "$(slug "$file")" "$file" -k "triton or cuda"
  done
  wait
  for log in "$results"/tests-*.log; do echo "$(basename "$log" .log): $(tail -n 1 "$log")"; done
fi

if wanted ops; then
  ops attention 75 "${attention[@]}"
  ops attention-packed 45 "${packed[@]}"
  ops blocks 75 "${blocks[@]}"
  ops others 90 "${others[@]}"
fi

if wanted steps; then
  run step-full 100 $python -m bench.step $full --rounds 10 --output "$results/step-full.json"
  run step-padded 90 $python -m bench.step $padded --rounds 6 --output "$results/step-padded.json" ||
    run step-padded-half 90 $python -m bench.step ${padded/2460/1230} --rounds 6 \
      --output "$results/step-padded-half.json" # where the GPU's memory was too small
  run step-small 60 $python -m bench.step $small --rounds 12 --output "$results/step-small.json"
fi

if wanted tune; then
  run tune 90 "${tune[@]}" --output "$results/products.json.new"
  # Without a GPU there are no results that it takes.
  [ "$rehearse" = 1 ] || run choices 20 $python -m bench.choices "$results"/ops-*.json --output "$results/choices.json.new"
fi

if wanted report; then
  deadline=$((deadline + 20)) # a few seconds, whatever came before
  shopt -s nullglob
  run report 20 $python -m bench.report "$results"/*.json && mv "$results/report.log" "$results/report.md"
  run bounds 20 $python -m bench.bounds "$results"/*.json && mv "$results/bounds.log" "$results/bounds.md"
  [ -e "$results/report.md" ] && cat "$results/report.md"
  [ -e "$results/bounds.md" ] && cat "$results/bounds.md"
fi

count=$(wc -l <"$failures")
sed 's/^/FAILED: /' "$failures" | tee "$results/failed.txt"
rm -r "$scratch"
echo "== done after $SECONDS s, $count failures"
exit "$count"
