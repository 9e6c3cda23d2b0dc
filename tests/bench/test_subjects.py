import importlib

import pytest
import torch

import earlybert_kernels as ek
from bench import shapes, varlen
from bench.ops.bench_optimizer_step import parameter_shapes
from bench.ops.cases import BASELINE, PEERS, SDPA_KERNELS, UNITS, VARLEN, Problem, make_cases, providers
from bench.ops.correctness import check_results
from bench.ops.provider import Provider

CPU = torch.device("cpu")
# These have rows of their own: bench_optimizer_step's and bench_whole_model's.
WITHOUT = ("gather_units", "optimizer_step", "pad", "ticket_distance", "ticket_masks", "unpad")
OPS = [op for op in ek.ops.dispatch.op_names() if op not in WITHOUT]


def subject_of(op):
    return importlib.import_module(f"bench.ops.bench_{op}").SUBJECT


@pytest.fixture(autouse=True)
def _small_vocabulary(monkeypatch):
    for op in ("masked_lm_loss", "embedding_layer_norm"):
        monkeypatch.setattr(importlib.import_module(f"bench.ops.bench_{op}"), "VOCABULARY", 101)


def is_refused(backend, op, unit):
    """CUDA's attention takes half precision, and its feed-forward no mask."""
    return backend == "cuda" and (op.startswith("attention") or (op, unit) == ("feed_forward", "masked"))


@pytest.mark.parametrize("lengths", ["sst2", "6"])
@pytest.mark.parametrize(("op", "unit"), [(op, unit) for op in OPS for unit in subject_of(op).units])
def test_every_provider_computes_the_same(op, unit, lengths):
    subject = subject_of(op)(Problem(op, "tiny", lengths, unit, 5, torch.float32, CPU))
    exact = Provider(subject, "reference", torch.float64).results()
    plain = Provider(subject, BASELINE).results()
    assert set(exact) == {"output", *(f"gradient of {name}" for name in subject.tokens | subject.weights)}
    for backend in ek.ops.backends(op):
        provider = Provider(subject, backend)
        if is_refused(backend, op, unit):
            with pytest.raises(ek.ops.BackendUnavailableError):
                provider.results()
            continue
        errors = check_results(provider.results(), plain, exact, torch.float32)
        assert set(errors) == set(exact)


@pytest.mark.parametrize("mode", ["forward", "backward", "full"])
def test_modes(mode):
    subject = subject_of("attention")(Problem("attention", "tiny", "sst2", "dense", 3, torch.float32, CPU))
    result = Provider(subject, "reference").prepare(mode, 0.1)()
    shape = (subject.num_tokens, 2, 64)
    if mode == "forward":
        assert result.shape == shape and result.requires_grad
    else:
        assert [gradient.shape for gradient in result] == [shape] * 3


def test_units_are_what_they_say():
    for op, name, axis in (("attention", "q", 1), ("feed_forward", "w_in", 0)):
        sizes = {}
        for unit in UNITS:
            subject = subject_of(op)(Problem(op, "minilm", "4", unit, 2, torch.float32, CPU))
            sizes[unit] = (subject.tokens | subject.weights)[name].shape[axis]
            mask = getattr(subject, "head_mask" if op == "attention" else "neuron_mask")
            assert (mask is not None) == (unit == "masked")
            if mask is not None:
                kept = int(mask.sum())
        assert sizes["dense"] == sizes["masked"] > sizes["compact"] == kept
        assert (
            subject.work()["full"].flops
            < subject_of(op)(Problem(op, "minilm", "4", "dense", 2, torch.float32, CPU)).work()["full"].flops
        )


def test_ids_name_everything():
    cases = make_cases(
        "attention", ["dense"], sizes=["minilm"], lengths=["sst2"], modes=["full"], batch_size=32,
        dtype=torch.float32, device=CPU,
    )  # fmt: skip
    assert [case.id for case in cases] == [
        f"minilm-sst2-dense-full-{provider}" for provider in providers("attention", CPU)
    ]


@pytest.mark.parametrize(("lengths", "sequences"), [("128", 128), ("512", 32), ("sst2", 1230), ("40000", 1)])
def test_a_batch_of_so_many_tokens(lengths, sequences):
    (case, *_) = make_cases(
        "attention", ["dense"], sizes=["base"], lengths=[lengths], modes=["full"], batch_size=3, tokens=2**14,
        dtype=torch.bfloat16, device=CPU, dropout=0.0,
    )  # fmt: skip
    assert case.problem.batch_size == sequences and case.problem.dropout == 0.0


def test_torchs_kernels_of_attention_are_providers_on_a_gpu():
    cuda = torch.device("cuda")
    assert set(PEERS) == {*SDPA_KERNELS, *VARLEN} < set(providers("attention", cuda))
    for others in (("attention", cuda, "masked"), ("attention", CPU), ("feed_forward", cuda)):
        assert not set(PEERS) & set(providers(*others))


def test_a_kernel_of_torchs_that_can_run_computes_the_same():
    subject = subject_of("attention")(Problem("attention", "tiny", "6", "dense", 3, torch.float32, CPU))
    plain = Provider(subject, BASELINE).results()
    for name, ours in Provider(subject, "flash").results().items():  # torch has this one for a CPU, too
        torch.testing.assert_close(ours, plain[name])


@pytest.mark.parametrize("name", VARLEN)
def test_torchs_packed_attention_takes_the_packed_batch(name, monkeypatch):
    def attention(given, q, k, v, cu_seqlens, max_seqlen, *, dropout_p):
        assert (given, q.shape[0], dropout_p) == (name, subject.num_tokens, 0.0)
        return ek.ops.attention(q, k, v, cu_seqlens, max_seqlen)

    subject = subject_of("attention")(Problem("attention", "tiny", "sst2", "dense", 3, torch.float32, CPU))
    with pytest.raises(NotImplementedError if name == "flash-varlen" else RuntimeError):
        Provider(subject, name).results()  # not on a CPU
    monkeypatch.setattr(varlen, "attention", attention)
    plain = Provider(subject, BASELINE).results()
    for key, ours in Provider(subject, name).results().items():
        torch.testing.assert_close(ours, plain[key])


def test_every_copy_of_the_inputs_has_a_place_of_its_own():
    subject = subject_of("feed_forward")(Problem("feed_forward", "tiny", "6", "masked", 3, torch.float32, CPU))
    provider = Provider(subject, "reference")
    first, second = (provider.prepare("full", 0.0, copy)() for copy in (0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    places = {tensor.data_ptr() for inputs in provider._copies for tensor in inputs.values()}
    assert len(places) == 2 * len(provider._copies[0]) == 10
    assert subject.kept_share == subject.kept_neurons / 512


def test_the_optimizers_parameters_are_those_of_the_model():
    dense, compact = parameter_shapes("tiny", "dense"), parameter_shapes("tiny", "compact")
    assert len(dense) == len(compact)
    assert dense[0] == compact[0] == (shapes.VOCABULARY, 128)
    ticket = shapes.SHAPES["tiny"].ticket()
    lost = sum(512 - len(kept) for kept in ticket.neurons) * (2 * 128 + 1)
    lost += sum(2 - len(kept) for kept in ticket.heads) * 64 * (4 * 128 + 3)
    assert sum(s.numel() for s in dense) - sum(s.numel() for s in compact) == lost > 0
