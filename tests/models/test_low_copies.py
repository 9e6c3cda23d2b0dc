"""Under autocast every layer but the first is handed its input in the dtype of the products as well."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import earlybert_kernels as ek
from earlybert_kernels.nn import encoder
from tests.helpers.targets import device_of
from tests.helpers.tiny_bert import batch, packed, tiny_model

LAYERS, LENGTHS, LONGER, HIDDEN = 2, (5, 1, 3), (4, 6, 2), 32
#: A head of 32 values, which CUDA's attention takes.
SIZES = {"hidden_size": HIDDEN, "num_attention_heads": 1, "intermediate_size": 40, "num_hidden_layers": LAYERS}


BACKENDS = [name for name in ("triton", "cuda") if name in ek.ops.backends("attention_sublayer")]


@pytest.fixture(params=["triton", "cuda"])
def model(request):
    """A converted model with dropout, all of whose layers run on a backend for GPUs."""
    if request.param not in BACKENDS:
        pytest.skip(f"attention_sublayer cannot run on {request.param} here")
    fields = {**SIZES, "problem_type": "single_label_classification"}
    with ek.use_backend(request.param):
        yield ek.convert(tiny_model(dropout=0.1, **fields)).to(device_of(request.param)).train()


def casts_its_input(op, arguments):
    """Whether it is a sublayer that is given no copy of its input."""
    name = getattr(op, "name", str)()
    return (
        name.startswith(("earlybert::attention_sublayer.", "earlybert::feed_forward_sublayer."))
        and arguments[-4] is None
    )


class Casts(TorchDispatchMode):
    """Counts the sublayers that have to cast their input, and looks at what the others are given."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += casts_its_input(func, args)
        return func(*args, **(kwargs or {}))


def step(model):
    """The loss and the gradients of a step under autocast, and how many casts its forward made."""
    device = next(model.parameters()).device
    inputs = {name: value.to(device) for name, value in batch(LENGTHS).items()}
    labels = torch.arange(len(LENGTHS), device=device) % 3
    model.zero_grad()
    torch.manual_seed(3)
    with torch.autocast(device.type, torch.bfloat16), Casts() as casts:
        loss = model(**inputs, labels=labels).loss
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)], casts.count


def assert_same_bits(ours, theirs):
    assert len(ours) == len(theirs) > 1
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_one_cast_is_left(model, monkeypatch):
    handed_on, casts = step(model)
    assert casts == 1
    monkeypatch.setattr(encoder, "_hands_on", lambda layer: False)
    alone, casts = step(model)
    assert casts == LAYERS  # a layer hands on to its own second sublayer
    assert_same_bits(handed_on, alone)


def test_hidden_states_are_the_residual_stream(model):
    inputs = {name: value.to(model.device) for name, value in batch(LENGTHS).items()}
    with torch.autocast(model.device.type, torch.bfloat16):
        states = model(**inputs, output_hidden_states=True).hidden_states
    assert all(state.dtype == torch.float32 and state.shape[-1] == HIDDEN for state in states)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_layers_are_given_no_copy(model, reentrant):
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})  # hooks the embeddings as well
    checkpointed, casts = step(model)
    assert casts == LAYERS
    for layer in model.bert.encoder.layer:
        layer.gradient_checkpointing = False
    plain, casts = step(model)
    assert casts == 1
    assert_same_bits(checkpointed, plain)


def test_a_hook_sees_a_tensor_and_what_it_changes_counts(model):
    """Also where it changes the tensor in place: the next layer does not go on with a copy of what was."""
    layers = model.bert.encoder.layer
    other, seen = copy.deepcopy(model), []
    layers[0].register_forward_hook(lambda module, args, out: seen.append(out) or out.detach().mul_(2))
    other.bert.encoder.layer[0].register_forward_hook(lambda module, args, out: 2 * out.detach())
    doubled, casts = step(model)
    assert seen[0].dtype == torch.float32
    assert casts == LAYERS
    assert_same_bits(doubled, step(other)[0])


# A graph is made of the ops' fakes, whatever runs it.
@pytest.mark.parametrize("model", BACKENDS[-1:], indirect=True)
def test_compiles_into_one_graph(model):
    device, casts = next(model.parameters()).device, []
    inputs = {name: value.to(device) if torch.is_tensor(value) else value for name, value in packed(LENGTHS).items()}

    def compiler(graph, example_inputs):
        casts.append(sum(casts_its_input(node.target, node.args) for node in graph.graph.nodes))
        return torch._dynamo.lookup_backend("aot_eager")(graph, example_inputs)

    torch._dynamo.reset()
    model.eval()  # dropout draws other seeds in a graph
    losses = []
    for run in (model, torch.compile(model, fullgraph=True, dynamic=True, backend=compiler)):
        with torch.autocast(device.type, torch.bfloat16):
            losses.append(run(**inputs, labels=torch.arange(len(LENGTHS), device=device) % 3).loss)
    # Dynamo hands over graphs that it gives up as well, while it finds out which numbers are constants.
    assert casts[-1] == 1
    compiled = len(casts)
    longer = {name: value.to(device) if torch.is_tensor(value) else value for name, value in packed(LONGER).items()}
    with torch.autocast(device.type, torch.bfloat16):
        run(**longer, labels=torch.arange(len(LONGER), device=device) % 3)
    assert len(casts) == compiled, "the graph is for batches of other lengths too"
    grads = (torch.autograd.grad(loss, list(model.parameters())) for loss in losses)
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs)
