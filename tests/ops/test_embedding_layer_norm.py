import pytest
import torch
from torch import nn
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertEmbeddings

import earlybert_kernels as ek
from earlybert_kernels import reference
from earlybert_kernels.backends import cpu
from earlybert_kernels.reference.counter_rng import keep_mask
from tests.helpers.accuracy import assert_defined_by

needs_cpu = pytest.mark.skipif(cpu.unavailable() is not None, reason=f"cpu: {cpu.unavailable()}")
SEED = 0x123456789ABCDEF
ROWS = (97, 50, 2)


def inputs(tokens, size, dtype=torch.float32):
    """Three ids, three tables, and weight and bias of the norm."""
    ids = [torch.randint(0, rows, (tokens,)) for rows in ROWS]
    shapes = [*((rows, size) for rows in ROWS), (size,), (size,)]
    return ids, [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def compiled(target, ids, tensors, dropout_p, padding_id=-1):
    seed = torch.tensor(SEED, device=target.device) if dropout_p else None
    ids = [t.to(target.device) for t in ids]
    run = getattr(torch.ops.earlybert.embedding_layer_norm, target.backend)
    return run(*ids, *tensors, seed, padding_id, dropout_p, 1e-12, True)[0]


def test_definition_is_what_transformers_computes():
    config = BertConfig(vocab_size=97, hidden_size=24, max_position_embeddings=50, pad_token_id=3)
    stock = BertEmbeddings(config).double().eval()
    ids, _ = inputs(40, 24)
    tables = [stock.word_embeddings, stock.position_embeddings, stock.token_type_embeddings, stock.LayerNorm]
    for table in tables:
        nn.init.normal_(table.weight)
    parameters = [*(t.weight for t in tables), stock.LayerNorm.bias]
    out = ek.ops.embedding_layer_norm(*ids, *parameters, padding_id=3)
    truth = stock(input_ids=ids[0][None], position_ids=ids[1][None], token_type_ids=ids[2][None])[0]
    assert (ids[0] == 3).any()
    torch.testing.assert_close(out, truth, rtol=1e-13, atol=1e-13)
    grads = (torch.autograd.grad(o.square().sum() + o.sum(), parameters) for o in (out, truth))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize("shape", [(1, 5), (3, 4), (37, 13), (300, 384), (64, 1023)], ids=str)
def test_output_and_gradients(target, shape, dropout_p):
    if target.backend == "triton":  # whose interpreter takes seconds for what tells no more than three programs do
        shape = (min(shape[0], 40), shape[1])
    ids, tensors = inputs(*shape)
    keep = keep_mask(SEED, shape, dropout_p) if dropout_p else None

    def defined(*t):
        return reference.embedding_layer_norm(*ids, *t, padding_id=0, dropout_p=dropout_p, keep=keep)

    assert_defined_by(lambda *t: compiled(target, ids, t, dropout_p, padding_id=0), defined, tensors, target.device)


def test_rows_that_do_not_occur_and_padding_have_no_gradient(target):
    ids, tensors = inputs(20, 16)
    tensors = [t.detach().to(target.device).requires_grad_() for t in tensors]
    ids[0][:5] = 7
    grads = torch.autograd.grad(compiled(target, ids, tensors, 0.1, padding_id=7).sum(), tensors)
    occurs = torch.zeros(97, dtype=torch.bool).index_fill(0, ids[0], True).to(target.device)
    assert not grads[0][~occurs].any()
    assert not grads[0][7].any()
    # What the tables' gradients are made of is ordinary memory that an optimizer may write to.
    assert grads[0].add_(1.0).sum().isfinite()


@needs_cpu
@pytest.mark.parametrize(("which", "id_"), [(0, 97), (0, -1), (1, 50), (2, 2)])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_ids_outside_their_table_are_refused(backend, which, id_):
    ids, tensors = inputs(4, 8)
    ids[which][2] = id_
    with pytest.raises(IndexError):
        ek.ops.embedding_layer_norm(*ids, *tensors, backend=backend)


@pytest.mark.parametrize("dropout_p", [0.0, 0.2])
def test_opcheck(target, dropout_p):
    ids, tensors = inputs(9, 12)
    ids = [t.to(target.device) for t in ids]
    tensors = [t.detach().to(target.device).requires_grad_() for t in tensors]
    seed = torch.tensor(SEED, device=target.device) if dropout_p else None
    arguments = (*ids, *tensors, seed, 0, dropout_p, 1e-12, True)
    torch.library.opcheck(getattr(torch.ops.earlybert.embedding_layer_norm, target.backend), arguments)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"position_ids": torch.zeros(3, dtype=torch.long)}, ValueError, r"position_ids has shape \(3,\)"),
        ({"input_ids": torch.zeros(4)}, TypeError, "input_ids is torch.float32, expected torch.int64"),
        ({"token_type": torch.zeros(2, 7)}, ValueError, r"token_type has shape \(2, 7\)"),
        ({"bias": torch.zeros(7)}, ValueError, r"bias has shape \(7,\)"),
        ({"dropout_p": -0.1}, ValueError, "dropout_p is -0.1"),
        ({"padding_id": -1}, ValueError, "padding_id is -1, expected a row of word, 0 to 96"),
    ],
)
def test_bad_arguments_are_refused(change, error, message):
    ids, tensors = inputs(4, 8)
    names = ["input_ids", "position_ids", "token_type_ids", "word", "position", "token_type", "weight", "bias"]
    with pytest.raises(error, match=message):
        ek.ops.embedding_layer_norm(**dict(zip(names, (*ids, *tensors), strict=True)) | change)
