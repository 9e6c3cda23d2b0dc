#!/usr/bin/env bash
# torch.compile(dynamic=True): two ints that are compared and found equal break the compiled code of a custom op.
#
# Versions:  torch 2.13.0 and 2.11.0, CPU.
# Expected:  a compiled function that checks that two int arguments are equal, and hands one to a custom op, does what the
#            function does.
# Seen:      NameError, "name 's..' is not defined", at the first call: the equality makes one symbol of two, and the
#            code that Inductor writes calls the op with the one that it has not defined. With the check left out, or with
#            one int alone, the same function works. Packed batches carry such pairs: max_length_q and max_length_k of
#            transformers' DataCollatorWithFlattening.
# Exits 0 while that is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$work"
TORCHINDUCTOR_CACHE_DIR="$work/cache" "$work/venv/bin/python" - <<'PY'
import sys

import torch


@torch.library.custom_op("demo::scale", mutates_args=())
def scale(x: torch.Tensor, factor: int) -> torch.Tensor:
    return x * factor


@scale.register_fake
def _(x, factor):
    return torch.empty_like(x)


def unchecked(x, first, second):
    return scale(x, first) + 1


def checked(x, first, second):
    if first != second:
        raise ValueError("the two differ")
    return scale(x, first) + 1


seen = {}
for function in (unchecked, checked):
    try:
        result = torch.compile(function, fullgraph=True, dynamic=True)(torch.ones(4), 3, 3)
        seen[function.__name__] = result.tolist()
    except NameError as error:
        seen[function.__name__] = f"NameError {str(error).split()[-2:]}"
print(torch.__version__, seen)
sys.exit(not (seen["unchecked"] == [4.0] * 4 and seen["checked"].startswith("NameError")))
PY
