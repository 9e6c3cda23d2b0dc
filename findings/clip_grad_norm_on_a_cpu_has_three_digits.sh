#!/usr/bin/env bash
# On a CPU the norm that torch.nn.utils.clip_grad_norm_ finds of a BERT's gradients is right to three digits.
#
# Versions:  torch 2.13.0, CPU.
# Expected:  that of float32 gradients is right to about six digits, as torch.linalg.vector_norm of their rows is.
# Seen:      of a tensor of the shape of MiniLM's word embeddings (30522 x 384, standard normal) clip_grad_norm_ returns
#            3422.11 in place of 3423.72: it is 4.7e-4 too small, with one thread and with two, and so are
#            torch.linalg.vector_norm and torch._foreach_norm of the whole tensor. The norm of the rows' norms is right
#            to 1e-6. The squares are added up one after the other in float32.
# Exits 0 while that is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cat > "$work/norms.py" <<'PY'
import torch

torch.manual_seed(0)
parameter = torch.nn.Parameter(torch.zeros(30522, 384))
gradient = torch.randn(parameter.shape)
exact = gradient.double().norm().item()


def clipped():
    parameter.grad = gradient.clone()
    return torch.nn.utils.clip_grad_norm_([parameter], 1.0)


ways = {
    "clip_grad_norm_": clipped,
    "vector_norm": lambda: torch.linalg.vector_norm(gradient),
    "_foreach_norm": lambda: torch._foreach_norm([gradient])[0],
    "norm of the rows' norms": lambda: torch.linalg.vector_norm(torch.linalg.vector_norm(gradient, dim=-1)),
}
errors = {}
for threads in (1, 2):
    torch.set_num_threads(threads)
    for name, way in ways.items():
        found = way().item()
        errors[threads, name] = abs(found / exact - 1)
        print(f"{threads} threads, {name}: {found:.2f}, exact {exact:.2f}, off by {errors[threads, name]:.1e}")
for (threads, name), error in errors.items():
    assert error < 2e-6 if "rows" in name else error > 1e-4, (threads, name, "is another")
PY
"$work/venv/bin/python" "$work/norms.py"
