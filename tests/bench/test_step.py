import argparse
import copy
import json
import statistics
from pathlib import Path

import pytest
import torch

import earlybert_kernels as ek
from bench import varlen
from bench.report import plots, report
from bench.shapes import SHAPES, Shape
from bench.step import __main__ as step
from bench.step import memory, variants
from bench.step.workload import Workload, pack

CPU = torch.device("cpu")
#: What torch.compile needs a minute for is left to whoever measures.
#: Of those that run in float32 on a CPU.
FAST = [
    name
    for name in variants.VARIANTS
    if name not in ("stock-compile", variants.IN_FLOAT32) and not name.startswith("stock-unpadded")
]


@pytest.fixture(autouse=True)
def _toy_shape(monkeypatch):
    monkeypatch.setitem(SHAPES, "tiny", Shape(layers=2, hidden=24, heads=4, neurons=40))


def workload(**changes):
    fields = {
        "model": None, "shape": "tiny", "lengths": "sst2", "data_dir": None, "padding": "longest", "max_length": None,
        "batch_size": 4,
    }  # fmt: skip
    return Workload(**fields | changes)


def test_one_round_of_everything(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(step, "measure_apart", lambda workload, name: {"peak_bytes": 2**20, "building_counts": False})
    path = tmp_path / "step.json"
    step.main([
        *workload().flags(), "--rounds", "1", "--memory", "--variants", *reversed(FAST), "--output", str(path),
    ])  # fmt: skip
    result = json.loads(path.read_text())
    assert list(result["variants"]) == FAST
    for variant in result["variants"].values():
        assert len(variant["seconds"]) == 1 and variant["memory"]["peak_bytes"] == 2**20
        assert variant["of_stock"]["median"] == variant["seconds"][0] / result["variants"]["stock"]["seconds"][0]
    assert result["arguments"]["shape"] == "tiny" and {"machine", "versions", "commit"} <= set(result)
    printed = capsys.readouterr().out
    assert "| ticket-compact-captured |" in printed and "| of the matrix rate | peak MiB |" in printed
    report.main([str(path), "--plots", str(tmp_path)])
    assert capsys.readouterr().out.startswith(printed.rstrip())
    assert (tmp_path / "step-step.png").exists()
    (axes,) = plots.step_figure(result).axes
    assert axes.get_xlabel() == "milliseconds"
    colours = {name: bar.get_facecolor() for name, bar in zip(result["variants"], axes.patches, strict=True)}
    assert colours["stock"] == colours["ticket-stock"] and colours["converted"] == colours["search-captured"]
    assert len({*colours.values()}) == 3 == len(axes.get_legend().get_texts())


@pytest.mark.parametrize("model_type", ["roberta", "distilbert", "albert", "modernbert"])
def test_other_families_are_as_right_and_as_large_as_they_are(model_type):
    work = workload(model_type=model_type)
    names = ["stock", "converted", "search", "ticket-masked", "ticket-compact", "ticket-stock"]
    measured = step.measure(work, names, 1, CPU)
    assert measured["failures"] == {} and list(measured["variants"]) == names
    model = work.stock_model()
    assert model.config.model_type == model_type
    (tokens,), (flops,) = (measured["batches"][name] for name in ("real_tokens", "dense_flops"))
    weights = 24 * (4 * 24 + (3 if model_type == "modernbert" else 2) * 40)
    assert flops > 2 * 6 * weights * tokens, "two layers, and attention"


def test_packed_batches_hold_the_same_sequences():
    work = workload(batch_size=8)
    batches = work.batches(6, CPU)
    packed = pack(batches)
    longest = max(batch["input_ids"].shape[1] for batch in batches)
    for batch, ours in zip(batches, packed, strict=True):
        real = int(batch["attention_mask"].sum())
        assert torch.equal(ours["input_ids"][0, :real], batch["input_ids"][batch["attention_mask"].bool()])
        assert torch.equal(ours["cu_seq_lens_q"][1:9].diff(), batch["attention_mask"].sum(1)[1:])
        assert torch.equal(ours["labels"][:8], batch["labels"]) and ours["max_length_q"] == longest
    full = pack(workload(lengths="full", max_length=20).batches(2, CPU))
    assert [batch["input_ids"].shape for batch in full] == [(1, 80)] * 2, "nothing has to be filled"


def test_packed_questions_keep_their_answers():
    (batch,) = workload(lengths="squad", max_length=60).batches(1, CPU)
    (ours,) = pack([batch])
    assert torch.equal(ours["start_positions"], batch["start_positions"]) and "labels" not in ours


def test_matrix_rates_are_of_dense_variants():
    variants = {name: {"seconds": [1.0, 2.0, 4.0]} for name in ("stock", "search", "ticket-compact")}
    result = {"variants": variants, "batches": {"dense_flops": [80, 80, 80]}, "rates": {"flops_per_second": 100}}
    step.add_matrix_rates(result)
    assert variants["stock"]["matrix_rate_share"] == variants["search"]["matrix_rate_share"] == 0.4
    assert "matrix_rate_share" not in variants["ticket-compact"]


def test_ratios_and_tokens():
    summary = step.summarize({"stock": [2.0, 4.0], "search": [1.0, 1.0]}, real_tokens=[10, 30])
    assert summary["search"]["of_stock"]["median"] == 0.375
    assert summary["search"]["of_converted"] is None
    assert summary["search"]["real_tokens_per_second"] == 20
    assert summary["stock"]["of_stock"] == {"q1": 1, "median": 1, "q3": 1}


@pytest.mark.parametrize("lengths", ["sst2", "squad", "full"])
@pytest.mark.parametrize("padding", ["longest", "max_length"])
def test_batches(lengths, padding):
    work = workload(lengths=lengths, padding=padding, max_length=100)
    batches = work.batches(3, CPU)
    again = work.batches(3, CPU)
    for batch, same in zip(batches, again, strict=True):
        sizes = batch["attention_mask"].sum(1)
        assert all(torch.equal(batch[name], same[name]) for name in batch)
        assert batch["input_ids"].shape == (4, 100 if padding == "max_length" else int(sizes.max()))
        assert lengths != "full" or set(sizes.tolist()) == {100}
        if lengths == "squad":
            assert (batch["start_positions"] < sizes).all() and (batch["end_positions"] < sizes).all()
    assert not torch.equal(batches[0]["input_ids"][:, :3], batches[1]["input_ids"][:, :3])


def test_questions_are_checked_at_real_tokens():
    work = workload(lengths="squad", max_length=60)
    models = {name: variants.build(name, work.stock_model()) for name in FAST}
    assert not variants.failed_checks(models, work.stock_model, work.batches(1, CPU)[0])


def test_a_variant_with_wrong_logits_is_left_out_and_an_error(monkeypatch, tmp_path, capsys):
    def build(name, stock):
        model = variants.build(name, stock)
        if name == "search":
            with torch.no_grad():
                model.classifier.bias += 0.01
        return model

    monkeypatch.setattr(step, "build", build)
    path = tmp_path / "step.json"
    names = ["--variants", "stock", "converted", "search"]
    with pytest.raises(SystemExit) as raised:
        step.main([*workload().flags(), "--rounds", "1", *names, "--output", str(path)])
    assert raised.value.code == 1
    assert "FAILED: search: AssertionError: search: wrong results" in capsys.readouterr().err
    assert list(json.loads(path.read_text())["variants"]) == ["stock", "converted"]


@pytest.mark.parametrize("fails_in", [1, step.WARM_UP + 2])
def test_what_was_measured_before_a_failure_is_kept(fails_in):
    calls, failures = [], {}

    def train(model, device, dtype, *, stock, captured):
        def run(batch):
            calls.append(model)
            if calls.count("broken") == fails_in + 1 and model == "broken":
                raise RuntimeError("a fault")

        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "training_step", train)
        models = {"stock": "works", "converted": "broken"}
        batches = workload().batches(step.WARM_UP + 4, CPU)
        rounds = [copy.deepcopy(each) for each in step.time_steps(models, batches, CPU, None, failures)]
    assert failures == {"converted": "RuntimeError: a fault"}
    if fails_in < step.WARM_UP:
        assert [set(each) for each in rounds] == [{"stock"}] * 4 and len(rounds[-1]["stock"]) == 4
    else:
        assert [[len(own) for own in each.values()] for each in rounds] == [[1, 1], [2, 2]]


def test_the_stock_model_without_padding(monkeypatch):
    def attention(name, q, k, v, cu_seqlens, max_seqlen, *, dropout_p, scale):
        return ek.ops.attention(q, k, v, cu_seqlens, max_seqlen, dropout_p=dropout_p, softmax_scale=scale)

    work = workload(batch_size=8)
    (batch,) = work.batches(1, CPU)
    models = {"stock-unpadded": variants.build("stock-unpadded", work.stock_model())}
    assert "NotImplementedError" in variants.failed_checks(models, work.stock_model, batch)["stock-unpadded"]
    monkeypatch.setattr(varlen, "attention", attention)
    assert not variants.failed_checks(models, work.stock_model, batch)
    stock, unpadded = work.stock_model().eval(), models["stock-unpadded"].eval()
    packed = pack([batch])[0]
    for model, own in ((stock, batch), (unpadded, packed)):
        model(**own).loss.backward()
    for ours, theirs in zip(unpadded.parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    with torch.no_grad():
        unpadded.model.classifier.bias += 0.01
    assert "wrong results" in variants.failed_checks(models, work.stock_model, batch)["stock-unpadded"]


def test_without_a_gpu_the_unpadded_stock_model_is_left_out(capsys):
    assert set(step.measure(workload(), ["stock", "stock-unpadded-compile"], 1, CPU)["variants"]) == {"stock"}
    assert "stock-unpadded-compile: left out, torch's attention of packed" in capsys.readouterr().err


def test_variants_are_what_they_say():
    work = workload()
    built = {name: variants.build(name, work.stock_model()) for name in FAST}
    assert {name for name, model in built.items() if ek.is_converted(model)} == {
        "converted", "search", "ticket-masked", "ticket-compact", "converted-captured", "search-captured",
        "ticket-compact-captured",
    }  # fmt: skip
    sizes = {name: sum(p.numel() for p in model.parameters()) for name, model in built.items()}
    assert sizes["stock"] == sizes["converted"] == sizes["ticket-masked"]
    assert sizes["search"] == sizes["stock"] + 2 * (4 + 40)
    assert sizes["ticket-compact"] == sizes["ticket-stock"] < sizes["stock"]


def test_real_sentences(tiny_bert, toy_sst2):
    work = workload(model=tiny_bert, shape=None, data_dir=Path(toy_sst2), max_length=16)
    (batch,) = work.batches(1, CPU)
    assert batch["input_ids"].shape[0] == 4 and set(batch["labels"].tolist()) <= {0, 1}
    assert (batch["input_ids"][:, 0] == 2).all(), "every sentence begins with [CLS]"


def test_real_questions(tiny_bert, tmp_path):
    context = "the film is good " * 20
    answers = [{"text": "good", "answer_start": context.index("good")}]
    questions = [{"id": word, "question": f"is the film {word}", "answers": answers} for word in ("good", "bad")]
    data = {"data": [{"paragraphs": [{"context": context, "qas": questions}]}]}
    (tmp_path / "train-v1.1.json").write_text(json.dumps(data))
    work = workload(model=tiny_bert, shape=None, lengths="squad", data_dir=tmp_path, max_length=30)
    (batch,) = work.batches(1, CPU)
    assert batch["input_ids"].shape == (4, 30) and batch["token_type_ids"].any()
    starts, ends = batch["start_positions"], batch["end_positions"]
    assert starts.equal(ends) and starts.any(), "the answer is one word"


@pytest.mark.parametrize("real", [True, False])
def test_hidden_words(tiny_bert, tmp_path, real):
    (tmp_path / "texts.txt").write_text("the film is good\n" * 60)
    data = {"model": tiny_bert, "shape": None, "data_dir": tmp_path} if real else {"shape": "tiny"}
    work = workload(lengths="texts", max_length=20, **data)
    first, second = work.batches(2, CPU)
    assert first["input_ids"].shape == first["labels"].shape == (4, 20)
    assert first["attention_mask"].all()
    assert ((first["labels"] != -100).sum(1) == 3).all(), "15% of 18 to 20 tokens"
    assert not first["labels"].equal(second["labels"])
    names = ["stock", "converted", "search", "ticket-compact", "ticket-stock", "converted-captured"]
    measured = step.measure(work, names, 1, CPU)
    assert measured["failures"] == {}
    assert set(measured["variants"]) == set(names)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "tiny", "--data-dir", "x"], "--data-dir needs --model"),
        (["--model", "m", "--lengths", "full", "--data-dir", "x"], "--lengths full takes no --data-dir"),
        (["--shape", "tiny", "--model", "m"], "not allowed with"),
        (["--model", "m", "--model-type", "bert"], "--model-type is that of a --shape"),
        (["--shape", "tiny", "--rounds", "0"], "--rounds: expected at least 1"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message, capsys):
    with pytest.raises(SystemExit):
        step.main(arguments)
    assert message in capsys.readouterr().err


def test_flags_say_the_same_again():
    parser = argparse.ArgumentParser()
    Workload.add_arguments(parser)
    work = workload(lengths="full", max_length=64, dtype="bfloat16", model_type="roberta")
    assert Workload.from_arguments(parser.parse_args(work.flags()), parser) == work


def test_peak_memory_in_a_process_of_its_own(monkeypatch):
    found = memory.measure_apart(workload(), "ticket-compact")
    # Parameters, gradients and two moments of the real tiny shape, 4.2 million parameters in float32.
    assert found["peak_bytes"] is None or 50e6 < found["peak_bytes"] < 1e9
    monkeypatch.setattr(memory.sys, "executable", "false")
    with pytest.raises(RuntimeError, match="peak memory of stock"):
        memory.measure_apart(workload(), "stock")


def test_half_precision_is_autocast(monkeypatch):
    names = {"stock", "converted", "converted-float32"}
    dtypes = []
    make = step.training_step
    monkeypatch.setattr(step, "training_step", lambda m, d, dtype, **o: dtypes.append(dtype) or make(m, d, dtype, **o))
    for dtype, found in (("bfloat16", names), ("float32", names - {"converted-float32"})):
        assert set(step.measure(workload(dtype=dtype), sorted(names), 1, CPU)["variants"]) == found
    assert [str(dtype).removeprefix("torch.") for dtype in dtypes] == [
        *("bfloat16", "float32", "bfloat16"),
        *("float32", "float32"),
    ]


def test_stock_modules_are_stepped_by_torch_and_others_by_ours(monkeypatch):
    stepped = {}
    for own in (torch.optim.AdamW, ek.AdamW):
        monkeypatch.setattr(own, "step", lambda optimizer, own=own: stepped.setdefault(own, []).append(optimizer))
    result = step.measure(workload(), ["stock", "converted", "ticket-stock"], 1, CPU)
    assert set(result["variants"]) == {"stock", "converted", "ticket-stock"}
    optimizers = {own: {id(optimizer) for optimizer in all_of} for own, all_of in stepped.items()}
    assert {own: len(each) for own, each in optimizers.items()} == {torch.optim.AdamW: 2, ek.AdamW: 1}
    assert {group["max_grad_norm"] for group in stepped[ek.AdamW][0].param_groups} == {1.0}


def test_means_of_the_table():
    work = workload()
    result = step.measure(work, ["stock"], 2, CPU)
    masks = [batch["attention_mask"] for batch in work.batches(step.WARM_UP + 2, CPU)[step.WARM_UP :]]
    assert statistics.mean(result["batches"]["real_tokens"]) == statistics.mean(int(mask.sum()) for mask in masks)
    assert result["batches"]["padded_tokens"] == [mask.numel() for mask in masks]
