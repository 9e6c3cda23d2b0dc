"""setup.py: its switches, what it records, and that both extensions really build without a GPU."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from earlybert_kernels import backends
from earlybert_kernels.backends import build_record, cpu, load_extension

CUDA, MISSING_CUDA = load_extension("_cuda")
ROOT = Path(__file__).parents[1]
RECORD = f"_build{sysconfig.get_config_var('EXT_SUFFIX').removesuffix('.so')}.json"
HAS_SOURCES = (ROOT / "setup.py").exists() and (ROOT / "csrc").exists()
pytestmark = pytest.mark.skipif(not HAS_SOURCES, reason="the tests run without the source tree")

needs_build_tools = pytest.mark.skipif(
    shutil.which("g++") is None
    or not all(importlib.util.find_spec(name) for name in ("pybind11", "ninja", "setuptools")),
    reason="building needs g++ and the packages pybind11, ninja and setuptools",
)
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")


@pytest.fixture
def tree(tmp_path):
    """A scratch copy of what a build reads; also the directory that it builds into."""
    for name in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "README.md").write_text("scratch\n")
    (tmp_path / "python" / "earlybert").mkdir(parents=True)
    (tmp_path / "earlybert_kernels").mkdir()
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    return tmp_path


def build(tree, *, path=None, **variables):
    """Runs `setup.py build_ext --inplace` under the given variables; returns the process and the record."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("EARLYBERT_")}
    for name in ("CUDA_HOME", "CUDA_PATH", "CXX"):
        env.pop(name, None)
    env.update(variables)
    if path is not None:
        env["PATH"] = str(path)
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True)
    record = tree / "earlybert_kernels" / RECORD
    return done, json.loads(record.read_text()) if record.exists() else None


def modules(tree):
    return sorted(path.name.split(".")[0] for path in (tree / "earlybert_kernels").glob("*.so"))


def test_switched_off(tree):
    done, record = build(tree, EARLYBERT_BUILD_CPU="0", EARLYBERT_BUILD_CUDA="0")
    assert done.returncode == 0, done.stderr
    assert "earlybert_kernels._cpu left out: EARLYBERT_BUILD_CPU=0" in done.stdout
    assert record["_cpu"] == {"built": False, "reason": "EARLYBERT_BUILD_CPU=0"}
    assert record["_cuda"] == {"built": False, "reason": "EARLYBERT_BUILD_CUDA=0"}
    assert modules(tree) == []


def test_the_builds_of_several_pythons_stand_side_by_side(tree, monkeypatch):
    other = tree / "earlybert_kernels" / "_build.cpython-39-x86_64-linux-gnu.json"
    other.write_text(json.dumps({"python": "3.9.1", "_cpu": {"built": True}}))
    kept = other.read_text()
    monkeypatch.setattr(backends, "__file__", str(tree / "earlybert_kernels" / "backends" / "__init__.py"))
    backends.build_record.cache_clear()
    try:
        assert build_record() == {}
        assert "_none is not built (it was built for Python 3.9.1)" in load_extension("_none")[1]
        build(tree, EARLYBERT_BUILD_CPU="0", EARLYBERT_BUILD_CUDA="0")
        backends.build_record.cache_clear()
        assert build_record()["_cpu"] == {"built": False, "reason": "EARLYBERT_BUILD_CPU=0"}
        assert other.read_text() == kept
        other.unlink()
        (tree / "earlybert_kernels" / RECORD).unlink()
        backends.build_record.cache_clear()
        assert "(this source tree was never built)" in load_extension("_none")[1]
    finally:
        monkeypatch.undo()
        backends.build_record.cache_clear()


def test_without_a_compiler_it_is_left_out(tree, tmp_path_factory):
    done, record = build(tree, path=tmp_path_factory.mktemp("bin"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("left out: no C++ compiler was found") == 2
    assert not record["_cpu"]["built"]
    assert not record["_cuda"]["built"]


def test_what_must_be_built_fails_without_its_compiler(tree, tmp_path_factory):
    empty = tmp_path_factory.mktemp("bin")
    done, record = build(tree, path=empty, EARLYBERT_BUILD_CPU="1")
    assert done.returncode != 0
    assert "EARLYBERT_BUILD_CPU=1, but: no C++ compiler was found" in done.stderr
    assert record is None


@needs_build_tools
def test_cuda_must_be_built_but_there_is_no_nvcc(tree, tmp_path_factory):
    only_gxx = tmp_path_factory.mktemp("bin")
    (only_gxx / "g++").symlink_to(shutil.which("g++"))
    done, _ = build(tree, path=only_gxx, EARLYBERT_BUILD_CPU="0", EARLYBERT_BUILD_CUDA="1")
    assert done.returncode != 0
    assert "EARLYBERT_BUILD_CUDA=1, but: nvcc was not found" in done.stderr


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"EARLYBERT_BUILD_CPU": "yes"}, "EARLYBERT_BUILD_CPU='yes': expected auto, 1 or 0"),
        pytest.param(
            {"EARLYBERT_BUILD_CPU": "1", "EARLYBERT_SANITIZE": "yes"},
            "EARLYBERT_SANITIZE='yes': expected 0 or 1",
            marks=needs_build_tools,
        ),
        ({"EARLYBERT_CUDA_ARCHS": "sm_80"}, "EARLYBERT_CUDA_ARCHS='sm_80': expected a list such as"),
        ({"EARLYBERT_CUDA_ARCHS": "80,90"}, "expected a list such as"),
        ({"EARLYBERT_CUDA_ARCHS": "90a+PTX"}, "is not portable"),
    ],
)
def test_wrong_values_are_refused(tree, variables, message):
    done, _ = build(tree, **{"EARLYBERT_BUILD_CPU": "0", "EARLYBERT_BUILD_CUDA": "0", **variables})
    assert done.returncode != 0
    assert message in done.stderr


@pytest.mark.parametrize(
    ("text", "targets"),
    [
        ("80;90a", ["compute_80,sm_80", "compute_90a,sm_90a", "compute_80,compute_80"]),
        ("90a", ["compute_90a,sm_90a"]),
        (" 80; 100+PTX;", ["compute_80,sm_80", "compute_100,sm_100",
         "compute_80,compute_80", "compute_100,compute_100"]),
    ],
)  # fmt: skip
def test_architecture_lists(text, targets):
    code = f"import setup; print(*setup.cuda_arch_flags({text!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    expected = ["-gencode=arch={},code={}".format(*target.split(",")) for target in targets]
    assert done.stdout.split() == expected


@needs_build_tools
def test_a_failing_compilation_is_left_out_with_the_reason(tree):
    for source in (tree / "csrc" / "cpu").glob("*.cpp"):
        source.unlink()
    (tree / "csrc" / "cpu" / "broken.cpp").write_text("#error this file is broken\n")
    stale = tree / "earlybert_kernels" / ("_cpu" + sysconfig.get_config_var("EXT_SUFFIX"))
    stale.write_bytes(b"from an earlier build")
    done, record = build(tree, EARLYBERT_BUILD_CUDA="0", CXX="g++ -Werror")
    assert done.returncode == 0, done.stderr
    assert re.match("the compilation failed: .*broken.cpp.* this file is broken", record["_cpu"]["reason"])
    assert not stale.exists()
    done, _ = build(tree, EARLYBERT_BUILD_CPU="1", EARLYBERT_BUILD_CUDA="0")
    assert done.returncode != 0
    assert "this file is broken" in done.stderr


# The real kernels take minutes, so that these builds are of one that stands in for them.
CPU_KERNEL = """
namespace EARLYBERT_ISA {
int threads() {
  int count = 0;
#pragma omp parallel reduction(+ : count)
  count += 1;
  return count;
}
}
"""
CUDA_KERNEL = """
#include <cuda_runtime.h>
__global__ void kernel(float* out) { *out = 1.0f; }
void fill(float* out) { kernel<<<1, 1>>>(out); }
"""
MODULE = """
#include <pybind11/pybind11.h>
PYBIND11_MODULE(NAME, m) {}
"""


@pytest.fixture
def one_kernel(tree):
    """The scratch copy with one kernel in place of all of each extension."""
    for source in (tree / "csrc").rglob("*.c*"):
        source.unlink()
    (tree / "csrc" / "cpu" / "threads.cpp").write_text(CPU_KERNEL)
    (tree / "csrc" / "cuda" / "fill.cu").write_text(CUDA_KERNEL)
    for name in ("cpu", "cuda"):
        (tree / "csrc" / "bindings" / f"{name}.cpp").write_text(MODULE.replace("NAME", f"_{name}"))
    return tree


@needs_build_tools
def test_the_cpu_extension_builds_and_is_not_built_twice(one_kernel):
    done, record = build(one_kernel, EARLYBERT_BUILD_CPU="1", EARLYBERT_BUILD_CUDA="0")
    assert done.returncode == 0, done.stderr
    assert modules(one_kernel) == ["_cpu"]
    assert record["_cpu"]["built"]
    assert "baseline" in record["_cpu"]["instruction_sets"]
    (module,) = (one_kernel / "earlybert_kernels").glob("*.so")
    before = module.stat().st_mtime_ns
    build(one_kernel, EARLYBERT_BUILD_CPU="1", EARLYBERT_BUILD_CUDA="0")
    assert module.stat().st_mtime_ns == before
    assert not openmp_libraries(module)


@pytest.mark.skipif(cpu.extension is None, reason=f"{cpu.missing}")
def test_the_installed_cpu_extension_brings_no_openmp():
    assert not openmp_libraries(cpu.extension.__file__)


def openmp_libraries(module):
    """The OpenMP libraries that a module would load: none, for torch has loaded one."""
    if shutil.which("readelf") is None:
        pytest.skip("readelf is not on PATH")
    needed = subprocess.run(["readelf", "-d", module], capture_output=True, text=True, check=True).stdout
    assert "NEEDED" in needed
    return [line for line in needed.splitlines() if "NEEDED" in line and "omp" in line]


@needs_build_tools
@needs_nvcc
def test_a_cuda_extension_builds_for_the_given_architectures(one_kernel):
    switches = {"EARLYBERT_BUILD_CPU": "0", "EARLYBERT_BUILD_CUDA": "1", "EARLYBERT_CUDA_ARCHS": "80;90a"}
    done, record = build(one_kernel, **switches)
    assert done.returncode == 0, done.stderr
    assert record["_cuda"]["archs"] == "80;90a" and record["_cuda"]["archs_from"] == "EARLYBERT_CUDA_ARCHS"
    (module,) = (one_kernel / "earlybert_kernels").glob("_cuda*.so")
    assert cuda_images(module) == {80, 90}


# A tool that lists what it is told to, and otherwise makes the file that is asked for. In the shell's own commands:
# nothing else is on its PATH, and Python would take most of a build's time.
FAKE_TOOL = """#!/bin/sh
case "$*" in *{question}*) printf '%s\\n' '{answer}'; exit {status};; esac
for argument; do
  test "$before" = -o && : > "$argument" && exit
  before=$argument
done
echo stand-in, release 1.0
"""


@pytest.fixture
def fake(tmp_path_factory):
    """Puts a stand-in for a tool into a folder: `fake(name, question, answer, status=0)`; `fake.folder`."""

    def make(name, question="--no-question", answer="", status=0):
        (make.folder / name).write_text(FAKE_TOOL.format(question=question, answer=answer, status=status))
        (make.folder / name).chmod(0o755)

    make.folder = tmp_path_factory.mktemp("bin")
    make("g++")
    return make


LISTED = "\n".join(f"compute_{arch}" for arch in (75, 80, 86, 87, 88, 89, 90, 100, 110, 103, 120, 121))
COMMON = ("80;86;89;90a;100", "the common ones")
HERE = "the GPUs that nvidia-smi lists"


@needs_build_tools
@pytest.mark.parametrize(
    ("listed", "gpus", "expected"),
    [
        (LISTED, None, COMMON),
        (LISTED, "9.0", ("90a", HERE)),
        (LISTED, "8.0\n8.0\n12.0", ("80;120", HERE)),
        (LISTED, "10.0\n9.0", ("90a;100", HERE)),
        # What nvcc does not know yet, or no more, can only run portable code, which the common ones have.
        (LISTED, "13.0", COMMON),
        (LISTED, "No devices were found", COMMON),
        ("compute_80\ncompute_86\ncompute_89\ncompute_90", None, ("80;86;89;90a", "the common ones")),
    ],
)
def test_without_a_list_it_is_built_for_the_gpus_here(one_kernel, fake, listed, gpus, expected):
    fake("nvcc", "--list-gpu-arch", listed)
    if gpus is not None:
        fake("nvidia-smi", "--query-gpu=compute_cap", gpus)
    done, record = build(one_kernel, path=fake.folder, EARLYBERT_BUILD_CPU="0", EARLYBERT_BUILD_CUDA="1")
    assert done.returncode == 0, done.stderr
    assert (record["_cuda"]["archs"], record["_cuda"]["archs_from"]) == expected
    code = [flag.partition(",code=")[2] for flag in record["_cuda"]["flags"] if flag.startswith("-gencode")]
    assert [name for name in code if name.startswith("sm_")] == [f"sm_{arch}" for arch in expected[0].split(";")]


@needs_build_tools
def test_what_both_cuda_modules_share_is_compiled_once(tree, fake):
    fake("nvcc", "--list-gpu-arch", LISTED)
    both = {"EARLYBERT_BUILD_CUDA": "1", "EARLYBERT_BUILD_CUDA_EMULATED": "1"}
    done, record = build(tree, path=fake.folder, EARLYBERT_BUILD_CPU="0", **both)
    assert record["_cuda"]["built"] and record["_cuda_emulated"]["built"], done.stdout
    (log,) = tree.rglob(".ninja_log")
    made = [Path(line.split("\t")[3]).name for line in log.read_text().splitlines()[1:]]
    assert made.count("cuda_ops.o") == 1
    assert made.count("cuda.binding.o") == 2  # the modules' names


@needs_build_tools
def test_a_driver_that_fails_is_no_gpu(one_kernel, fake):
    fake("nvcc", "--list-gpu-arch", LISTED)
    fake("nvidia-smi", "--query-gpu", "9.0", status=9)
    done, record = build(one_kernel, path=fake.folder, EARLYBERT_BUILD_CPU="0", EARLYBERT_BUILD_CUDA="1")
    assert done.returncode == 0 and record["_cuda"]["archs"] == COMMON[0], done.stderr


@needs_build_tools
def test_without_a_gpu_it_is_built_where_it_is_asked_for(one_kernel, fake):
    """It takes minutes, and most machines without a GPU have no use for it."""
    fake("nvcc", "--list-gpu-arch", LISTED)
    done, record = build(one_kernel, path=fake.folder, EARLYBERT_BUILD_CPU="0")
    assert done.returncode == 0, done.stderr
    assert record["_cuda"]["reason"].startswith("nvidia-smi lists no GPU here; EARLYBERT_BUILD_CUDA=1 builds it")
    done, record = build(one_kernel, path=fake.folder, EARLYBERT_BUILD_CPU="0", EARLYBERT_CUDA_ARCHS="common")
    assert done.returncode == 0 and (record["_cuda"]["archs"], record["_cuda"]["archs_from"]) == COMMON, done.stderr


@needs_build_tools
@pytest.mark.parametrize(("listed", "status"), [("compute_70", 0), ("", 1)])
def test_an_nvcc_that_knows_no_architecture_is_named(one_kernel, fake, listed, status):
    fake("nvcc", "--list-gpu-arch", listed, status)
    done, record = build(one_kernel, path=fake.folder, EARLYBERT_BUILD_CPU="0", EARLYBERT_CUDA_ARCHS="common")
    reason = "--list-gpu-arch does not run" if status else "knows none of the architectures 80, 86, 89, 90a, 100"
    assert done.returncode == 0 and reason in record["_cuda"]["reason"]


@pytest.mark.parametrize("name", ["_cpu", "_cuda", "_cuda_emulated"])
def test_nothing_is_left_out_for_what_has_failed(name):
    """What did not compile, or does not load beside the others: all its tests would be skipped, and nobody told."""
    record = build_record().get(name, {})
    assert "the compilation failed" not in record.get("reason", "")
    if record.get("built"):
        module, missing = load_extension(name)
        assert module is not None, missing


@pytest.mark.skipif(CUDA is None, reason=f"{MISSING_CUDA}")
def test_the_installed_cuda_extension_has_the_recorded_architectures():
    archs = {int(arch) for arch in re.findall(r"\d+", build_record()["_cuda"]["archs"])}
    assert cuda_images(Path(CUDA.__file__)) == archs & ARCHITECTURES


ARCHITECTURES = {80, 86, 89, 90, 100}


def cuda_images(module):
    """The architectures of the ELF images for GPUs inside an extension: their headers' machine is EM_CUDA."""
    data, found, at = module.read_bytes(), set(), 0
    while (at := data.find(b"\x7fELF\x02\x01", at)) >= 0:
        if int.from_bytes(data[at + 18 : at + 20], "little") == 190:
            found |= {data[at + 48], data[at + 49]} & ARCHITECTURES  # where depends on the CUDA version
        at += 4
    return found


@pytest.mark.skipif(cpu.extension is None, reason=f"{cpu.missing}")
def test_the_installed_cpu_extension_lists_its_instruction_sets():
    assert cpu.extension.instruction_sets()[-1] == "baseline"
    with pytest.raises(ValueError, match="no instruction set 'mmx'"):
        cpu.extension.use_instruction_set("mmx")


def report(**variables):
    """`python -m earlybert_kernels.env` where no GPU is seen and none is emulated."""
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "EARLYBERT_CUDA_EMULATED": "0", **variables}
    return subprocess.run([sys.executable, "-m", "earlybert_kernels.env"], env=env, capture_output=True, text=True)


@pytest.mark.parametrize("chosen", ["", "baseline"])
def test_the_report_names_extensions_and_ops(chosen):
    done = report(EARLYBERT_INSTRUCTION_SET=chosen)
    assert done.returncode == 0, done.stderr
    for part in ("torch", "_cpu", "_cuda", "dropout_add_layer_norm", "reference", "EARLYBERT_BUILD_CUDA"):
        assert part in done.stdout
    if cpu.extension is not None:
        assert re.search(r"^ *OpenMP runtime +/.*omp", done.stdout, re.MULTILINE)
        names = cpu.extension.instruction_sets()
        line = rf"instruction set +{chosen or names[0]} of {', '.join(names)}$"
        assert re.search(line, done.stdout, re.MULTILINE)
    if CUDA is not None:
        assert re.search(rf"^ *_cuda +built, {re.escape(CUDA.__file__)}$", done.stdout, re.MULTILINE)


@pytest.mark.skipif(cpu.extension is None, reason=f"{cpu.missing}")
def test_an_instruction_set_that_there_is_not_is_an_error():
    names = cpu.extension.instruction_sets()
    wrong = "mmx" if "amx_bf16" in names else "amx_bf16"
    done = report(EARLYBERT_INSTRUCTION_SET=wrong)
    assert done.returncode != 0 and f"no instruction set '{wrong}'; it can run {', '.join(names)}" in done.stderr


@pytest.mark.skipif(CUDA is None, reason=f"{MISSING_CUDA}")
def test_the_installed_cuda_extension_runs_without_a_gpu():
    code = f"""
import importlib.util
spec = importlib.util.spec_from_file_location("_cuda", {CUDA.__file__!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(module.layer_norm_partials(5, 8))
"""
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.strip() == "2", done.stderr
