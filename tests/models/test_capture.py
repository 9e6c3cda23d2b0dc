"""A captured training step. Without a GPU its batches take the same way, and no graph is captured."""

import subprocess
import sys

import pytest
import torch

import earlybert_kernels as ek
from earlybert_kernels.reference.counter_rng import keep_mask
from tests.helpers.tiny_bert import some_ticket, tiny_model

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="CUDA graphs need a GPU")

COLLATE = ek.PackedCollator(fill_to=32, batch_size=6, max_length=12)


def batches(count, seed=0, size=6):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        lengths = torch.randint(1, 13, (size,), generator=generator).tolist()
        rows = [torch.randint(3, 50, (length,), generator=generator) for length in lengths]
        yield COLLATE([{"input_ids": row, "labels": row[0] % 3} for row in rows])


def to_device(batch):
    return {name: value.to(DEVICE) if torch.is_tensor(value) else value for name, value in batch.items()}


class Training:
    """A model with gates, its optimizer and schedule, and the step that trains it."""

    def __init__(self, dropout=0.0, lr=1e-3, set_to_none=True, lamb=False):
        # Widths that tensor cores take, in float32.
        shape = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96}
        model = tiny_model(dropout=dropout, problem_type="single_label_classification", **shape)
        self.model = ek.enable_gates(ek.convert(model)).to(DEVICE).train()
        # With a usual eps Adam would blow up the rounding of gradients that are 0, as those of key biases are.
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=lr, eps=1e-4, capturable=DEVICE == "cuda")
        if lamb:
            self.optimizer = ek.Lamb(self.model.parameters(), lr=lr, eps=1e-4, adapt=False)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1 / (1 + step))
        self.set_to_none = set_to_none
        self.calls = 0

    def train_step(self, batch):
        self.calls += 1
        loss = self.model(**batch).loss
        loss.backward()
        for name, parameter in self.model.named_parameters():
            if name.endswith("gates"):
                parameter.grad.add_(parameter.detach().sign(), alpha=1e-3)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=self.set_to_none)
        return loss

    def captured(self):
        return ek.CapturedStep(self.model, self.optimizer, self.train_step)

    def eagerly(self, batch):
        return self.train_step(to_device(batch)).detach()


def run(training, step, inputs, tickets=None):
    """The losses of steps, each on its own batch, a ticket applied before those that `tickets` numbers."""
    losses = []
    for number, batch in enumerate(inputs):
        if number in (tickets or {}):
            ticket = tickets[number]
            (ek.clear_ticket if ticket is None else lambda m, t=ticket: ek.apply_ticket(m, t))(training.model)
        losses.append(step(batch))
        training.scheduler.step()
    return torch.stack(losses)


def equal_after(captured, eager, ours, theirs):
    # The same kernels on the same numbers; sums that the device adds up in another order may differ in the last digits.
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    for a, b in zip(captured.model.parameters(), eager.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("set_to_none", "lamb"), [(True, False), (False, False), (True, True)])
def test_steps_equal_uncaptured_ones_over_several_shapes(set_to_none, lamb):
    options = {"set_to_none": set_to_none, "lamb": lamb}
    captured, eager = Training(**options), Training(**options)
    step = captured.captured()
    inputs = list(batches(12)) + list(batches(2, seed=1, size=2))
    ours, theirs = run(captured, step, inputs), run(eager, eager.eagerly, inputs)
    equal_after(captured, eager, ours, theirs)
    shapes = {batch["input_ids"].shape for batch in inputs}
    assert 2 <= len(shapes) == step.buckets < 6
    assert theirs[-4:].mean() < theirs[:4].mean()  # it learns, so that the comparison means something
    assert captured.calls == (2 * len(shapes) if DEVICE == "cuda" else len(inputs))


def test_a_learning_rate_put_in_place_counts():
    training = Training()
    step = training.captured()
    (inputs,) = batches(1)
    changes = []
    for rate in (1e-3, 0.0, 1e-2):
        for group in training.optimizer.param_groups:
            group["lr"] = rate
        weight = training.model.classifier.weight.detach()
        before = weight.clone()
        step(inputs)
        changes.append(float((weight - before).abs().max()))
    assert changes[1] == 0 and changes[2] > 4 * changes[0] > 0


def test_masks_change_under_the_graphs():
    captured, eager = Training(), Training()
    tickets = {3: some_ticket(captured.model), 6: some_ticket(captured.model, seed=6), 9: None}
    ek.reserve_masks(captured.model)
    step = captured.captured()
    inputs = list(batches(12, seed=3))
    ours = run(captured, step, inputs, tickets)
    calls = captured.calls
    theirs = run(eager, eager.eagerly, inputs, tickets)
    equal_after(captured, eager, ours, theirs)
    assert calls == (2 * step.buckets if DEVICE == "cuda" else len(inputs))
    dense = Training()
    assert not torch.allclose(run(dense, dense.eagerly, inputs), theirs, rtol=1e-3, atol=1e-3)


def test_tickets_as_indices_are_captured_anew():
    captured, eager = Training(), Training()
    tickets = {3: some_ticket(captured.model), 6: None}
    inputs = list(batches(8, seed=4))
    ours = run(captured, captured.captured(), inputs, tickets)
    equal_after(captured, eager, ours, run(eager, eager.eagerly, inputs, tickets))


def test_a_compact_model_is_captured_anew():
    captured, eager = Training(), Training()
    ticket = some_ticket(captured.model)
    step = captured.captured()
    inputs = list(batches(8, seed=5))
    results = []
    for training, train in ((captured, step), (eager, eager.eagerly)):
        run(training, train, inputs[:4])
        ek.compact(training.model, ticket, training.optimizer)
        results.append(run(training, train, inputs[4:]))
    equal_after(captured, eager, *results)


@pytest.mark.parametrize(
    ("change", "buckets"),
    [
        (lambda t: None, 2),
        (lambda t: t.model.train(), 2),
        (lambda t: t.model.load_state_dict(t.model.state_dict()), 2),
        (lambda t: t.model.eval(), 1),
        (lambda t: t.model.bert.embeddings.word_embeddings.weight.requires_grad_(False), 1),
        (lambda t: ek.apply_ticket(t.model, some_ticket(t.model)), 1),
        (lambda t: t.optimizer.load_state_dict(t.optimizer.state_dict()), 1),
    ],
)
def test_what_drops_the_graphs(change, buckets):
    training = Training()
    step = training.captured()
    inputs = [*batches(1), *batches(1, size=1)]
    for batch in inputs:
        step(batch)
    assert step.buckets == 2
    change(training)
    step(inputs[0])
    assert step.buckets == buckets


def test_the_loss_is_the_callers_own():
    training = Training()
    step = training.captured()
    (inputs,) = batches(1)
    first, second = step(inputs), step(inputs)
    value = first.clone()
    third = step(inputs)
    assert torch.equal(first, value) and len({float(x) for x in (first, second, third)}) == 3
    assert not first.requires_grad


def test_values_that_cannot_be_hashed_are_refused():
    training = Training()
    (inputs,) = batches(1)
    with pytest.raises(TypeError, match="names of the batch is a list"):
        training.captured()({**inputs, "names": ["a"]})


def test_other_values_have_graphs_of_their_own():
    training = Training()
    step = training.captured()
    (inputs,) = batches(1)
    step(inputs)
    step({**inputs, "max_length_q": 13, "max_length_k": 13})
    assert step.buckets == 2


@needs_gpu
@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.SGD])
def test_optimizers_that_cannot_be_captured_are_refused(make):
    training = Training()
    with pytest.raises(ValueError, match="capturable=True"):
        ek.CapturedStep(training.model, make(training.model.parameters()), training.train_step)


def test_dropout_is_drawn_as_without_a_graph():
    captured, eager = Training(dropout=0.2), Training(dropout=0.2)
    inputs = list(batches(8, seed=6))
    results = []
    for training, step in ((captured, captured.captured()), (eager, eager.eagerly)):
        torch.manual_seed(11)
        results.append(run(training, step, inputs))
    equal_after(captured, eager, *results)


def test_every_step_has_a_new_mask_and_the_one_of_its_seed():
    if DEVICE == "cpu" and "cpu" not in ek.ops.backends("dropout_add_layer_norm"):
        pytest.skip("only compiled backends make their masks from a seed")
    model = torch.nn.Module()
    model.x = torch.nn.Parameter(torch.randn(37, 64, device=DEVICE))
    ones, zeros = torch.ones(64, device=DEVICE), torch.zeros(64, device=DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), capturable=DEVICE == "cuda")

    def train_step(batch):
        return ek.ops.dropout_add_layer_norm(model.x, batch["residual"], ones, zeros, dropout_p=0.5)

    step = ek.CapturedStep(model, optimizer, train_step)
    residuals = [torch.randn(37, 64) for _ in range(5)]
    torch.manual_seed(11)
    outs = [step({"residual": residual}) for residual in residuals]
    torch.manual_seed(11)
    seeds = [int(torch.randint(0, 2**63 - 1, (), device=DEVICE)) for _ in residuals]
    assert len(set(seeds)) == 5
    for seed, residual, out in zip(seeds, residuals, outs, strict=True):
        h = residual.to(DEVICE) + 2 * model.x.detach() * keep_mask(seed, model.x.shape, 0.5, DEVICE)
        torch.testing.assert_close(out, torch.nn.functional.layer_norm(h, (64,)), rtol=1e-4, atol=1e-5)


@needs_gpu
def test_a_step_that_waits_for_the_device_is_refused_with_its_reason():
    """In a process of its own, which a failed capture may leave unusable."""
    script = """
import torch, earlybert_kernels as ek
layer = torch.nn.Linear(4, 4).cuda()
optimizer = torch.optim.AdamW(layer.parameters(), capturable=True)
step = ek.CapturedStep(layer, optimizer, lambda batch: layer(batch["x"]).sum() * layer.weight.sum().item())
try:
    step({"x": torch.ones(2, 4)})
except RuntimeError as error:
    print(error, step.buckets)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert "cannot be captured in a CUDA graph: it waits for the device" in run.stdout, run.stderr
    assert run.stdout.strip().endswith(" 0")
