#!/usr/bin/env bash
# Makes build/gpu/bundle, which saves bench/gpu.sh a minute or two on a machine with a GPU and no network: the CUDA
# extension for the Python that runs there and for Hopper GPUs, and the commit, which a copy without .git cannot say.
#   bench/gpu_bundle.sh [PYTHON]
# PYTHON is of the version that runs there, default python3.12. Needs nvcc and a network, and neither torch nor a GPU.
# EARLYBERT_CUDA_ARCHS=... for other GPUs than sm_90a. Take build/gpu/bundle along into the same place.
set -euo pipefail
cd "$(dirname "$0")/.."
work=build/gpu
python=$work/venv/bin/python
[ -x "$python" ] || "${1:-python3.12}" -m venv "$work/venv"
"$python" -m pip install --quiet --disable-pip-version-check 'setuptools>=77' 'pybind11>=3' ninja

rm -rf "$work/lib" "$work/bundle"
PATH="$PATH:/usr/local/cuda/bin" EARLYBERT_CUDA_ARCHS="${EARLYBERT_CUDA_ARCHS:-90a}" EARLYBERT_BUILD_CUDA=1 \
  EARLYBERT_BUILD_CPU=0 EARLYBERT_BUILD_CUDA_EMULATED=0 "$python" setup.py -q build_ext --build-lib "$work/lib"
mkdir -p "$work/bundle"
cp "$work"/lib/earlybert_kernels/_cuda.*.so "$work"/lib/earlybert_kernels/_build.*.json "$work/bundle"
git describe --always --dirty >"$work/bundle/commit"

size=$(du -sm "$work/bundle" | cut -f 1)
echo "$work/bundle: $(ls "$work/bundle" | tr '\n' ' ')($size MiB)"
[ "$size" -le 64 ] || { echo "more than 64 MiB" && exit 1; }
