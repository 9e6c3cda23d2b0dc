"""Every op of the CPU extension, whatever the threads and processes around it."""

from __future__ import annotations

import ctypes
import heapq
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import earlybert_kernels as ek
from earlybert_kernels.backends import cpu
from earlybert_kernels.ops.dispatch import op_names
from tests.helpers import examples

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason=f"cpu: {cpu.unavailable()}")

OPS = [name for name in op_names() if "cpu" in ek.ops.backends(name)]


def equal(ours, expected):
    return all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


@pytest.mark.parametrize("op", OPS)
def test_any_number_of_threads_gives_the_same_bits(op):
    threads = torch.get_num_threads()
    try:
        by_threads = []
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            by_threads.append(examples.results(op, "cpu", dropout_p=0.1))
    finally:
        torch.set_num_threads(threads)
    assert all(equal(others, by_threads[0]) for others in by_threads[1:])


#: Rows and columns of products in BERT-base, its ticket and its decoder.
@pytest.mark.parametrize("shape", [(1024, 768), (1024, 3072), (768, 768), (3072, 768), (1000, 1843), (300, 30522)])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_product_is_divided_evenly_among_up_to_64_threads(shape, bfloat16):
    """Whoever is free takes the next task: none waits long for the others, and little is done more than once.

    Time is counted in multiplications; packing a number, which every task does with its rows and columns, is 16.
    """

    def times(threads):
        tasks = cpu.extension.linear_tasks(*shape, threads, bfloat16)
        sizes = [(end_row - row, end_col - col) for row, end_row, col, end_col in tasks]
        return [rows * cols + 16 * (rows + cols) for rows, cols in sizes]

    whole = sum(times(1))
    for threads in range(1, 65):
        busy = [0] * threads
        for time in times(threads):
            heapq.heapreplace(busy, busy[0] + time)
        assert sum(busy) <= 1.35 * whole, f"{threads} threads"
        assert max(busy) * threads <= whole / 0.6, f"{threads} threads"


@pytest.mark.parametrize("threads", [1, 2, 7, 64])
@pytest.mark.parametrize("shape", [(1, 1), (29, 65), (201, 770)])
def test_the_tasks_of_a_product_are_all_of_it_once(shape, threads):
    for bfloat16 in (False, True):
        done = torch.zeros(shape)
        for row, end_row, col, end_col in cpu.extension.linear_tasks(*shape, threads, bfloat16):
            done[row:end_row, col:end_col] += 1
        assert (done == 1).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("op", OPS)
def test_torchs_default_dtype_changes_nothing(op, dtype):
    expected = examples.results(op, "cpu", dropout_p=0.1)
    make = torch.randn
    torch.set_default_dtype(dtype)
    try:
        torch.randn = lambda *shape, **options: make(*shape, dtype=torch.float32, **options)
        assert equal(examples.results(op, "cpu", dropout_p=0.1), expected)
    finally:
        torch.randn = make
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("op", OPS)
def test_calls_from_several_python_threads_at_once(op):
    expected = examples.results(op, "cpu")
    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(examples.results, op, "cpu") for _ in range(9)]
        assert equal(examples.results(op, "cpu"), expected)
        assert all(equal(each.result(), expected) for each in running)


@pytest.mark.parametrize("op", OPS)
def test_a_new_python_thread_obeys_the_number_of_threads(op):
    """OpenMP counts for each thread apart; torch tells it in those in which torch itself has run."""
    tensors = examples.inputs(op, torch.Generator())
    counts = []

    def call():
        examples.EXAMPLES[op][0](*tensors, dropout_p=0.0, backend="cpu")
        counts.append(ctypes.CDLL(None).omp_get_max_threads())

    threads = torch.get_num_threads()
    torch.set_num_threads(5)
    try:
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
    finally:
        torch.set_num_threads(threads)
    assert counts == [5]


def test_a_forked_worker_after_its_parent_used_threads_own_process():
    """GNU's OpenMP hangs in the forked child of a process with threads, in torch's ops as in ours.

    torch's way out is one thread in each worker of a DataLoader, which has to reach ours as well.
    """
    code = f"""
import sys
sys.path.append({str(Path(__file__).parents[2])!r})
import torch
from tests.helpers import examples
from torch.utils.data import DataLoader
ops = {OPS}
class Ops(torch.utils.data.Dataset):
    def __len__(self):
        return len(ops)
    def __getitem__(self, number):
        return examples.results(ops[number], "cpu", dropout_p=0.1)
torch.set_num_threads(3)
expected = [Ops()[number] for number in range(len(ops))]
loader = DataLoader(Ops(), batch_size=None, num_workers=1, multiprocessing_context="fork", timeout=60)
for ours, parents in zip(loader, expected, strict=True):
    assert all(torch.equal(a, b) for a, b in zip(ours, parents, strict=True))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_openmp_is_torchs_whatever_else_is_loaded_own_process():
    """The extension brings no runtime, and takes torch's also where scikit-learn has loaded its own before."""
    loaded = "print(*{line.split()[-1] for line in open('/proc/self/maps') if 'omp.so' in line or 'omp-' in line})"
    alone = f"""
import importlib.util, torch
{loaded}
spec = importlib.util.spec_from_file_location("_cpu", {cpu.extension.__file__!r})
importlib.util.module_from_spec(spec)
{loaded}
"""
    beside = """
import sklearn.metrics, torch
import earlybert_kernels.backends.cpu as cpu
print(*cpu.openmp_runtimes(), sep="\\n")
"""
    torchs, with_ours = python(alone).splitlines()
    assert with_ours == torchs != ""
    own, others = python(beside).splitlines()
    assert own in torchs.split()
    assert own not in others
    if others == "[]":
        pytest.skip("scikit-learn has no OpenMP runtime of its own here")


def python(code):
    """What a new process prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
