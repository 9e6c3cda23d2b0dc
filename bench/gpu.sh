#!/usr/bin/env bash
# Everything that wants a GPU, for a machine with one NVIDIA GPU, 16 cores and no network, in two commands:
#   bench/gpu.sh first RESULTS           550 s: does every op launch, is it right, how fast are ops and steps
#   bench/gpu.sh second RESULTS [FIRST]  220 s: what failed once more, more steps, the slowest kernel under ncu;
#                                        FIRST is the folder of the first command's results, default RESULTS
# bench/gpu.py says what they do, what they need and what they leave; bench/gpu_bundle.sh makes what saves time there.
# REHEARSE=1 runs all commands without a GPU, at toy sizes on the CPU.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH="$root:$root/python${PYTHONPATH:+:$PYTHONPATH}"
exec python3 -u -m bench.gpu "$@"
