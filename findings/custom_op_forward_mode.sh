#!/usr/bin/env bash
# A custom op with a registered backward formula, and none for forward-mode AD, drops tangents without a word.
#
# Versions:  torch 2.13.0, Python 3.11 or 3.12, CPU.
# Expected:  an error in torch.func.jvp ("forward AD not implemented"), as built-in ops without such a formula raise.
# Seen:      jvp returns a tangent of exactly zero for y = 2x made by torch.library.custom_op and register_autograd,
#            where reverse mode gives 2. Only parts of a model that bypass the op contribute to a Jacobian-vector product.
# Exits 0 while that is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PY'
import sys

import torch


@torch.library.custom_op("finding::double", mutates_args=())
def double(x: torch.Tensor) -> torch.Tensor:
    return x * 2


double.register_autograd(lambda ctx, grad: grad * 2, setup_context=lambda ctx, inputs, output: None)

x, tangent = torch.ones(3), torch.full((3,), 5.0)
y = x.clone().requires_grad_()
double(y).sum().backward()
try:
    found = torch.func.jvp(double, (x,), (tangent,))[1].tolist()
except Exception as error:
    found = f"{type(error).__name__}: {error}"
print("reverse mode:", y.grad.tolist())
print("forward mode:", found, "(2 * 5 is right)")
sys.exit(not (y.grad.tolist() == [2.0] * 3 and found == [0.0] * 3))
PY
