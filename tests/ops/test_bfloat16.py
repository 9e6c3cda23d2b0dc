"""The CPU's products of numbers that are rounded to bfloat16: under autocast to it, and of models that are."""

import contextlib

import pytest
import torch
import transformers

import earlybert_kernels as ek
from earlybert_kernels.backends import cpu
from tests.helpers.accuracy import assert_as_exact_as_pytorch
from tests.helpers.tiny_bert import batch, set_gates, some_ticket, tiny_model
from tests.ops.conftest import BFLOAT16_SETS, VECTOR_SETS, _use_instruction_set
from tests.ops.test_feed_forward import inputs as feed_forward_inputs
from tests.ops.test_linear import SHAPES, case

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason=f"cpu: {cpu.unavailable()}")

#: Wide enough that errors average out.
SIZES = {"hidden_size": 96, "intermediate_size": 200}
LOW = torch.bfloat16
TINY = torch.finfo(torch.float32).tiny


@pytest.fixture(params=BFLOAT16_SETS)
def instruction_set(request):
    """Each that the processor has or can stand in for, with an instruction for bfloat16 and without."""
    with _use_instruction_set(request.param):
        yield request.param


def rounded(tensor):
    return tensor.bfloat16().double()


@pytest.mark.parametrize("picked", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_are_those_of_the_rounded_factors(instruction_set, shape, picked):
    """Sums are float32, and what is scaled is scaled before it is rounded."""
    x, kept, bias = case(*shape, picked, picked, scaled=True)
    kept = kept._replace(bfloat16=True)
    y, _ = cpu.linear.forward(x, kept, bias)
    grad_y = torch.randn(y.shape)
    grad_x, grad_weight, *_ = cpu.linear.backward(grad_y, x, kept)

    rows = slice(None) if kept.out_units is None else kept.out_units
    columns = slice(None) if kept.in_units is None else kept.in_units
    scaled = rounded(kept.weight[rows][:, columns] * kept.in_scale)
    inner = rounded(x) @ scaled.T
    unscaled = rounded(grad_y).T @ rounded(x)
    for ours, exact in (
        (y, inner + bias[rows].double()),
        (grad_x, rounded(grad_y) @ scaled),
        (grad_weight[rows][:, columns], unscaled * kept.in_scale.double()),
    ):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-5 * exact.abs().max().item())
    in_float32 = x.double() @ (kept.weight[rows][:, columns] * kept.in_scale).double().T
    assert shape == (1, 1, 1) or (in_float32 - inner).abs().max() > 1e-3 * inner.abs().max()


def test_every_instruction_set_for_vectors_gives_the_same_bits():
    """Also of subnormal factors, which AVX512-BF16 takes for 0, and where rounding overflows or there is no number."""
    torch.manual_seed(0)
    x, kept, _ = case(45, 1101, 70)
    x[:5] *= 1e-40
    x[5, 3], x[6, 4], x[7, 5], x[8, 6] = float("nan"), float("inf"), torch.finfo(torch.float32).max, -1e-40
    kept = kept._replace(bfloat16=True)
    grad_y = torch.randn(45, 70)
    grad_y[:, 0] *= TINY / 100
    results = {}
    for name in VECTOR_SETS:
        with _use_instruction_set(name):
            grads = cpu.linear.backward(grad_y, x, kept)
            results[name] = (cpu.linear.forward(x, kept, None)[0], grads[0], grads[1])
    first = results.pop(VECTOR_SETS[0])
    assert not first[0][:5].any()
    assert first[0][5].isnan().all()
    assert not first[0][10:].isnan().any()
    for other in results.values():
        for ours, theirs in zip(first, other, strict=True):
            assert torch.equal(ours.nan_to_num(7.0), theirs.nan_to_num(7.0))
            assert torch.equal(ours.isnan(), theirs.isnan())


def test_any_number_of_threads_gives_the_same_bits(instruction_set):
    x, kept, bias = case(200, 700, 300)
    kept = kept._replace(bfloat16=True)
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(cpu.linear.forward(x, kept, bias)[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("x_dtype", "dtype"), [(torch.float32, torch.float32), (LOW, torch.float32), (LOW, LOW)])
def test_the_block_alone_is_as_exact_as_pytorch(x_dtype, dtype, masked):
    """Under autocast to bfloat16, of an x that it has already rounded or has not, or in bfloat16 itself."""
    x, w_in, b_in, w_out, b_out = feed_forward_inputs(70, 40, 90, torch.float32)
    tensors = [x.to(x_dtype), *(t.to(dtype) for t in (w_in, b_in, w_out, b_out)), torch.randn(90)]
    weights = torch.randn(x.shape)
    mask = torch.arange(90) % 3 > 0 if masked else None

    def results(backend, low):
        leaves = [t.detach().to(t.dtype if low else torch.float64).requires_grad_() for t in tensors]
        with torch.autocast("cpu", LOW, enabled=low and dtype != LOW), ek.ops.record_backends() as ran:
            out = ek.ops.feed_forward(*leaves[:5], neuron_mask=mask, neuron_gates=leaves[5], backend=backend)
        assert ran == {"feed_forward": backend or "cpu"}
        return out, *torch.autograd.grad((out * weights).sum(), leaves)

    ours, plain = results(None, True), results("reference", True)
    assert [t.dtype for t in ours] == [t.dtype for t in plain]
    assert ours[0].dtype == LOW
    assert_as_exact_as_pytorch(ours, plain, results("reference", False), LOW)


def test_the_block_alone_leaves_other_dtypes_to_pytorch():
    tensors = feed_forward_inputs(5, 6, 11, torch.float32)
    with torch.autocast("cpu", torch.float16), pytest.raises(RuntimeError, match="autocast to torch.float16 is on"):
        ek.ops.feed_forward(*tensors, backend="cpu")
    with pytest.raises(RuntimeError, match="it takes float32 tensors, got torch.bfloat16"):
        ek.ops.feed_forward(tensors[0], *(t.to(LOW) for t in tensors[1:]), backend="cpu")


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("cls", ["BertForSequenceClassification", "BertForMaskedLM"])
def test_a_step_is_as_exact_as_stock(cls, own):
    """The gradients of a gated, masked model next to float64: at most twice as far off as torch's own kernels.

    Under autocast, or with parameters in bfloat16 themselves and gates in float32.
    """
    model = ek.convert(tiny_model(cls=getattr(transformers, cls), dropout=0.0, num_hidden_layers=2, **SIZES))
    model = ek.enable_gates(model.bfloat16() if own else model)
    set_gates(model)
    ek.apply_ticket(model, some_ticket(model))
    inputs = batch()
    inputs["labels"] = inputs["input_ids"] if cls.endswith("LM") else torch.arange(len(inputs["input_ids"])) % 3

    skipped = {"skip_logits": True} if cls.endswith("LM") else {}

    def step(backend, autocast):
        model.zero_grad()
        # The embeddings of a model in bfloat16 are left to PyTorch, so that the CPU's kernels cannot be forced.
        forced = ek.ops.use_backend(backend) if backend == "reference" else contextlib.nullcontext()
        low = torch.autocast("cpu", torch.bfloat16, enabled=autocast)
        with forced, low, ek.ops.record_backends() as ran:
            loss = model(**inputs, **skipped).loss
        loss.backward()
        products = {"attention_sublayer", "feed_forward_sublayer", *(["masked_lm_loss"] if skipped else [])}
        assert {ran[op] for op in products} == {backend}
        return torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])

    ours, stock = step("cpu", not own), step("reference", not own)
    float32 = None if own else step("cpu", False)
    model.double()
    exact = step("reference", False)

    def far_off(gradients):
        return (gradients - exact).norm() / exact.norm()

    assert 1e-4 < far_off(ours) <= 2 * far_off(stock)
    assert float32 is None or far_off(float32) < 1e-4
