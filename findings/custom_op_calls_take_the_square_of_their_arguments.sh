#!/usr/bin/env bash
# A call of a custom op that has a gradient takes time by the square of the number of the op's arguments.
#
# Versions:  torch 2.13.0, CPU.
# Expected:  an op of torch.library.custom_op with register_autograd and setup_context costs a little more for each
#            argument: one of 64 arguments up to four times as much as one of 16, with and without gradients.
# Seen:      without gradients 1.9 times, with them 11 times. On one core of an EPYC, 0.08 ms for 16
#            arguments, 0.25 ms for 32 and 0.9 ms for 64, of which the op itself is a few microseconds: in front of
#            setup_context, defaults are filled in by an index into a list of all arguments that is made anew for each.
# Exits 0 while that is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cat > "$work/calls.py" <<'PY'
import time

import torch

torch.set_num_threads(1)


def op_of(count):
    schema = "(" + ", ".join(f"Tensor x{i}" for i in range(count)) + ") -> Tensor"
    op = torch.library.custom_op(f"finding::of_{count}", lambda *x: x[0].clone(), mutates_args=(), schema=schema)
    op.register_autograd(
        lambda ctx, grad: (grad, *[None] * (count - 1)), setup_context=lambda ctx, inputs, output: None
    )
    return op


def milliseconds(op, inputs, calls=200):
    best = float("inf")
    for _ in range(7):
        start = time.perf_counter()
        for _ in range(calls):
            op(*inputs)
        best = min(best, (time.perf_counter() - start) / calls)
    return best * 1e3


took = {}
for count in (16, 32, 64):
    op, inputs = op_of(count), [torch.zeros(1) for _ in range(count)]
    for with_gradient in (False, True):
        inputs[0].requires_grad_(with_gradient)
        took[count, with_gradient] = milliseconds(op, inputs)
        print(f"{count} arguments, {'with' if with_gradient else 'without'} gradient: {took[count, with_gradient]:.3f} ms")
growth = {with_gradient: took[64, with_gradient] / took[16, with_gradient] for with_gradient in (False, True)}
print(f"64 arguments take {growth[False]:.1f} times what 16 take without a gradient, {growth[True]:.1f} times with one")
assert growth[False] < 5 < 7 < growth[True], "the growth is another"
PY
"$work/venv/bin/python" "$work/calls.py"
