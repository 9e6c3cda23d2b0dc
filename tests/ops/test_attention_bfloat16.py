"""The CPU's attention on bfloat16: products of what is rounded, summed in float32."""

import pytest
import torch

import earlybert_kernels as ek
from earlybert_kernels.backends import cpu
from tests.helpers import oracles
from tests.helpers.accuracy import assert_as_exact_as_pytorch, results
from tests.ops.conftest import BFLOAT16_SETS, _use_instruction_set
from tests.ops.test_attention_compiled import CASES, inputs, known_keep, with_seed

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason=f"cpu: {cpu.unavailable()}")

LOW = torch.bfloat16


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize("case", ["mixed", "bert", "odd head size", "empty sequence", "first tokens"])
@pytest.mark.parametrize("name", BFLOAT16_SETS)
def test_as_exact_as_pytorch_in_bfloat16(name, case, dropout_p, window):
    """Output and gradients; gates stay float32."""
    lengths, _, _, lengths_q = CASES[case]
    tensors, packing = inputs(*CASES[case])
    tensors = [t.detach().to(LOW) for t in tensors]
    keep = known_keep(tensors[0], max(lengths), dropout_p) if dropout_p else None

    def defined(q, k, v, gates):
        options = {"gates": gates, "keep": keep, "dropout_p": dropout_p, "window": window}
        return oracles.attention(q, k, v, [n for n in lengths if n], lengths_q, **options)

    def compiled(q, k, v, gates):
        if dropout_p:
            return with_seed(q, k, v, gates.float(), packing, dropout_p, window=window)
        return ek.ops.attention(q, k, v, **packing, head_gates=gates.float(), window=window, backend="cpu")

    with _use_instruction_set(name):
        ours = results(compiled, tensors, LOW)
    assert {t.dtype for t in ours} == {LOW}
    assert_as_exact_as_pytorch(ours, results(defined, tensors, LOW), results(defined, tensors, torch.float64), LOW)


@pytest.mark.skipif("avx512_bf16" not in BFLOAT16_SETS, reason="the processor has no AVX512-BF16")
def test_with_the_instruction_and_without_gives_the_same_bits():
    """Registers are as wide in both, so that sums outside of products have the same order, too."""
    tensors, packing = inputs(*CASES["bert"])
    both = []
    for name in ("avx512_bf16", "avx512"):
        with _use_instruction_set(name):
            both.append(results(lambda q, k, v: with_seed(q, k, v, None, packing, 0.1), tensors[:3], LOW))
    assert all(map(torch.equal, *both))


def test_autocast_rounds_to_it():
    """As torch's own products: the result has its dtype, and float32 inputs get gradients in theirs."""
    (q, k, v, _), packing = inputs((9, 4, 20), 3, 8)
    low = ek.ops.attention(*(t.to(LOW) for t in (q, k, v)), **packing, backend="cpu")
    with torch.autocast("cpu", LOW):
        out = ek.ops.attention(q, k, v, **packing, backend="cpu")
    assert out.dtype == LOW
    assert torch.equal(out, low)
    assert torch.autograd.grad(out.float().sum(), q)[0].dtype == torch.float32
    with torch.autocast("cpu", torch.float16), pytest.raises(RuntimeError, match="in float32 or bfloat16"):
        ek.ops.attention(q, k, v, **packing, backend="cpu")


@pytest.mark.parametrize("name", BFLOAT16_SETS)
def test_any_number_of_threads_gives_the_same_bits(name):
    tensors, packing = inputs(*CASES["bert"])
    found = []
    with _use_instruction_set(name):
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(results(lambda q, k, v: with_seed(q, k, v, None, packing, 0.1), tensors[:3], LOW))
    assert all(map(torch.equal, found[0], found[1]))
    assert all(map(torch.equal, found[0], found[2]))
