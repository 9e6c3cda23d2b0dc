"""The two commands for a GPU: what they run and for how long. That it all runs is what REHEARSE=1 tries out."""

import json
import subprocess

import pytest
import torch
from _pytest.mark.expression import Expression
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

from bench import gpu, gpu_bundle, varlen
from bench.jobs import Job, Outcome
from bench.step import __main__ as step
from bench.step.unpadded import UnpaddedClassifier
from bench.step.workload import Workload, pack
from earlybert_kernels.backends import backends
from tests.helpers import examples

FIRST, SECOND = gpu.LIMITS


@pytest.fixture
def session(tmp_path):
    def make(which, **options):
        (tmp_path / "work").mkdir(exist_ok=True)
        return gpu.Session(which, tmp_path, tmp_path, work=tmp_path / "work", **{"rehearse": False} | options)

    return make


@pytest.mark.parametrize("which", gpu.LIMITS)
def test_budgets_add_up(session, which):
    names = [part.name for part in session(which).parts]
    for budgets in gpu.BUDGETS[which]:
        assert list(budgets) == names
        assert sum(budgets.values()) <= gpu.LIMITS[which]


@pytest.mark.parametrize("which", gpu.LIMITS)
def test_no_step_takes_the_time_of_the_next(session, which):
    own = session(which)
    assert sum(job.seconds for job in own.steps()) <= own.budgets()["steps"]
    assert all(part.at_once == 1 for part in own.parts if part.name in ("rows", "steps", "profile"))


def test_a_mistake_costs_a_part_alone(session, capsys):
    own = session(FIRST, rehearse=True)
    begun = []

    def part(name):
        def jobs():
            begun.append(name)
            if name == "check":
                raise ValueError("a mistake")
            return []

        return gpu.Part(name, jobs)

    own.parts = [part(each.name) for each in own.parts]
    assert own.run() == 1
    assert begun == list(own.budgets()) and "FAILED: ValueError: a mistake" in capsys.readouterr().out
    assert set(json.loads((own.results / "first.json").read_text())["parts"]) == set(begun)


def test_all_ops_are_run(session):
    on_gpus = [backends()[name] for name in gpu.GPU_BACKENDS]
    ops = {op for op in examples.EXAMPLES if any(backend.has(op) for backend in on_gpus)}
    assert set(gpu.OPS) == ops and len(ops) > 10
    names = {job.name for job in session(FIRST).launches()}
    assert names == {f"launch-{backend}-{op}" for backend in gpu.GPU_BACKENDS for op in ops}


def test_names_are_of_one_job_and_files_are_there(session):
    first, second = session(FIRST), session(SECOND)
    jobs = [*first.setup(), *first.launches(), *first.checks(), *first.rows(), *first.steps(), *second.steps()]
    assert len({job.name for job in jobs}) == len(jobs)
    files = [word for job in jobs for word in job.command if word.endswith(".py") and not word.startswith("-")]
    assert len(files) > 60 and all((gpu.ROOT / file).is_file() for file in files)


@pytest.mark.parametrize("name", gpu.STEPS)
@pytest.mark.parametrize("rehearse", [False, True])
def test_steps_take_their_arguments(session, name, rehearse, capsys):
    command = session(FIRST, rehearse=rehearse).step_command(name, 0)
    with pytest.raises(SystemExit):
        step.main(command[3:])
    assert "--rounds: expected at least 1" in capsys.readouterr().err


def chosen(expression, names):
    compiled = Expression.compile(expression)
    return [name for name in names if compiled.evaluate(name.__contains__)]


def test_backends_that_do_not_launch_have_no_rows(session):
    own = session(FIRST)
    names = [
        f"test_attention[base-128-{unit}-full-{provider}]"
        for unit in ("dense", "masked")
        for provider in ("eager", "compile", "cudnn", "cuda", "triton", "reference")
        if (unit, provider) != ("masked", "cudnn")
    ]
    all_rows = chosen(own._chosen("attention-128"), names)
    assert len(all_rows) == 6 + 3
    own.runner.outcomes.append(Outcome(Job("launch-cuda-attention", (), 1), 1, 1.0))
    own.runner.outcomes.append(Outcome(Job("launch-triton-optimizer_step", (), 1), None, 0.0))
    assert chosen(own._chosen("attention-128"), names) == [name for name in all_rows if "-cuda]" not in name]
    steps = [f"test_optimizer_step[{name}-base-dense-{b}]" for name in gpu.OPTIMIZERS for b in gpu.GPU_BACKENDS]
    assert chosen(own._chosen("lamb"), steps) == ["test_optimizer_step[lamb-base-dense-cuda]"]
    assert chosen(own._chosen("feed-forward"), names) == all_rows
    own.runner.outcomes.append(Outcome(Job("sizes-attention-cuda", (), 1), 0, 1.0))
    assert chosen(own._chosen("attention-128"), names) == all_rows, "it was only slow"


def test_real_sizes_are_split_by_op_and_backend(session):
    names = [f"test_output_and_gradients[{op}-{b}-all-dtype0]" for op in gpu.REAL_SIZES for b in gpu.GPU_BACKENDS]
    names += [f"test_attention_drops_what_the_shared_rule_drops[{b}-dtype1]" for b in gpu.GPU_BACKENDS]
    names.remove("test_output_and_gradients[masked_lm_loss-cuda-all-dtype0]")
    jobs = [job for job in session(FIRST).checks() if job.name.startswith("sizes-")]
    found = [name for job in jobs for name in chosen(job.command[job.command.index("-k") + 1], names)]
    assert sorted(found) == sorted(names)


def test_what_failed_runs_again(session):
    first = session(FIRST)
    first.runner.outcomes += [
        Outcome(Job("launch-cuda-attention", ("/old/python", "tests/launches.py"), 5, {"A": "1"}), None, 0.0),
        Outcome(Job("rows-lamb", ("/old/python", "{work}/{name}.json"), 45), -9, 45.0, timed_out=True),
        Outcome(Job("launch-cuda-optimizer_step", ("python",), 5), 0, 1.0),
        Outcome(Job("compile-full", ("python",), 5), 1, 1.0),
    ]
    first.runner.keep()
    jobs = session(SECOND).again()
    assert [job.name for job in jobs] == [
        "compile-small", "compile-padded", "again-rows-lamb", "again-launch-cuda-attention",
    ]  # fmt: skip
    assert jobs[2].command == (gpu.PYTHON, "{work}/{name}.json")
    assert jobs[3].env == {"A": "1", "CUDA_LAUNCH_BLOCKING": "1"}


def test_the_kernel_furthest_below_the_roofline_is_profiled(session):
    first = session(FIRST)

    def rows(group, **shares):
        row = {"unit": "dense", "mode": "full"}
        own = [{**row, "provider": provider, "floor_share": share} for provider, share in shares.items()]
        content = [{"name": f"test[{each['provider']}]", "extra_info": each} for each in own]
        (first.runner.work / f"rows-{group}.json").write_text(json.dumps({"benchmarks": content}))

    rows("layer-norm", eager=0.1, triton=0.5, cuda=0.7)
    rows("feed-forward", triton=0.4, compile=0.2)
    first.reports()
    first.runner.keep()
    (job,) = session(SECOND).profile()
    assert job.command[0] == "ncu" and "bench/ops/bench_feed_forward.py::test[triton]" in job.command


def test_nothing_to_profile(session, capsys):
    assert session(SECOND).profile() == [] and "nothing to profile" in capsys.readouterr().out


def test_caches_travel_without_what_only_people_read(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_bundle, "CACHES", tmp_path / "here")
    gpu_bundle.pack_caches(tmp_path / "none.tar.gz")
    assert not (tmp_path / "none.tar.gz").exists()
    (tmp_path / "here" / "triton" / "AB").mkdir(parents=True)
    for name in ("kernel.cubin", "kernel.ttgir", "__grp__kernel.json"):
        (tmp_path / "here" / "triton" / "AB" / name).write_text(name)
    gpu_bundle.pack_caches(tmp_path / "caches.tar.gz")
    monkeypatch.setattr(gpu_bundle, "CACHES", tmp_path / "there")
    gpu_bundle.unpack_caches(tmp_path / "caches.tar.gz")
    assert {path.name for path in (tmp_path / "there").rglob("*.*")} == {"kernel.cubin", "__grp__kernel.json"}
    monkeypatch.setattr(gpu_bundle, "_CACHES_SIZE", 10)
    gpu_bundle.pack_caches(tmp_path / "caches.tar.gz")
    assert not (tmp_path / "caches.tar.gz").exists()


def test_the_bundles_extension_is_taken_if_it_loads(tmp_path, monkeypatch, capsys):
    for folder in ("bundle", "root/earlybert_kernels"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setattr(gpu_bundle, "BUNDLE", tmp_path / "bundle")
    monkeypatch.setattr(gpu_bundle, "ROOT", tmp_path / "root")
    assert not gpu_bundle.take_extension()
    suffix = gpu_bundle.sysconfig.get_config_var("EXT_SUFFIX")
    (tmp_path / "bundle" / f"_cuda{suffix}").write_bytes(b"no library")
    (tmp_path / "bundle" / f"_build{suffix.removesuffix('.so')}.json").write_text("{}")
    assert not gpu_bundle.take_extension()
    assert "no CUDA extension that loads" in capsys.readouterr().out
    assert len(list((tmp_path / "root" / "earlybert_kernels").iterdir())) == 2


@pytest.mark.parametrize(("name", "dropout_p"), [("flash-varlen", 0.1), ("varlen", 0.0)])
def test_torchs_packed_attention_takes_what_it_is_given(name, dropout_p):
    """Without a GPU the installed torch checks the arguments and says the shapes, forward and backward."""
    q, k, v = (torch.empty(10, 4, 64, dtype=torch.bfloat16, device="meta", requires_grad=True) for _ in range(3))
    cu_seqlens = torch.empty(3, dtype=torch.int32, device="meta")
    out = varlen.attention(name, q, k, v, cu_seqlens, 6, dropout_p=dropout_p, scale=0.125)
    gradients = torch.autograd.grad(out, [q, k, v], torch.empty_like(out))
    assert {tensor.shape for tensor in (out, *gradients)} == {q.shape}


@pytest.mark.filterwarnings("ignore:aten..nll_loss. an autograd kernel was not registered")
def test_the_unpadded_stock_model_is_one_graph_for_torch_compile():
    """On tensors without data: forward and backward hold torch's attention, and are compiled twice for all lengths."""
    graphs = []

    def keep(graph, inputs):
        graphs.append(sum("_flash_attention" in str(node.target) for node in graph.graph.nodes))
        return make_boxed_func(graph.forward)

    work = Workload(None, "tiny", "sst2", None, "longest", None, 8)
    model = UnpaddedClassifier(work.stock_model()).to("meta").train()
    compiled = torch.compile(model, backend=aot_autograd(fw_compiler=keep, bw_compiler=keep), fullgraph=True)
    for batch in pack(work.batches(3, torch.device("cpu"))):
        own = {name: value.to("meta") if torch.is_tensor(value) else value for name, value in batch.items()}
        with torch.autocast("cpu", torch.bfloat16):
            loss = compiled(**own).loss
        loss.backward()
    assert graphs == [2] * 4, "two layers, forward and backward, for one length and then for any"


def test_varlen_knows_no_dropout():
    with pytest.raises(RuntimeError, match="has no dropout"):
        varlen.attention("varlen", *[torch.empty(1, 1, 8)] * 3, torch.tensor([0, 1]), 1, dropout_p=0.1)


def test_what_is_imported_at_the_beginning_is_there(session):
    first = session("first", rehearse=True)
    (job,) = (job for job in first.setup() if job.name == "setup-transformers")
    done = subprocess.run(job.command, env=first.runner.env, cwd=gpu.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
