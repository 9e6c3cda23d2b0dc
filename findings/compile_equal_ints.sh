#!/usr/bin/env bash
# torch.compile(dynamic=True): a check that two int arguments are equal breaks the call of a custom op, if they have some
# names and not if they have others.
#
# Versions:  torch 2.13.0 and 2.11.0, CPU.
# Expected:  a compiled function that checks that two int arguments are equal, and hands one to a custom op, does what the
#            function does, whatever its arguments are called.
# Seen:      called max_q and max_k, NameError at the first call, "name 's..' is not defined"; called first and second, the
#            same function works, and so it does without the check. The equality makes one symbol of two; Inductor's
#            code defines one and calls the op with the other, and which is which seems to follow from the names.
#            Packed batches carry such pairs: max_length_q and max_length_k of transformers' DataCollatorWithFlattening.
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


def unchecked(x, max_q, max_k):
    return scale(x, max_q) + scale(x, max_k)


def called_max_q_and_max_k(x, max_q, max_k):
    if max_q != max_k:
        raise ValueError("the two differ")
    return scale(x, max_q)


def called_first_and_second(x, first, second):
    if first != second:
        raise ValueError("the two differ")
    return scale(x, first)


seen = {}
for function in (unchecked, called_max_q_and_max_k, called_first_and_second):
    torch._dynamo.reset()
    try:
        seen[function.__name__] = torch.compile(function, fullgraph=True, dynamic=True)(torch.ones(2), 3, 3).tolist()
    except NameError as error:
        seen[function.__name__] = f"NameError: {error}"
print(torch.__version__, seen)
name_error = str(seen.pop("called_max_q_and_max_k")).startswith("NameError")
sys.exit(not (name_error and seen == {"unchecked": [6.0, 6.0], "called_first_and_second": [3.0, 3.0]}))
PY
