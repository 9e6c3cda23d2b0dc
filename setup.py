"""Builds the extension modules of earlybert_kernels with ninja: `_cpu` (C++) and `_cuda` (nvcc).

Neither links torch, so nothing here imports it, and one build serves every torch version. An extension
that cannot be built is left out with one line saying why, and the library runs its ops in plain PyTorch
instead. What was built, how, and what is missing is written to earlybert_kernels/_build.TAG.json, where TAG names
the Python and the platform as in the modules' own names; `python -m earlybert_kernels.env` prints it.

Environment variables:

    EARLYBERT_BUILD_CPU    auto (default): build if possible; 1: fail the installation if not; 0: leave out
    EARLYBERT_BUILD_CUDA   the same for the CUDA extension; needs nvcc (in $CUDA_HOME/bin or on PATH). auto builds it
                           where there is a GPU or EARLYBERT_CUDA_ARCHS is set: it takes minutes
    EARLYBERT_BUILD_CUDA_EMULATED
                           0 (default); 1: also the CUDA kernels for the processor, to test them without a GPU
    EARLYBERT_CUDA_ARCHS   GPU architectures, such as "80;90a". "100+PTX" adds portable code for newer GPUs;
                           the lowest plain architecture always gets it. "common" stands for
                           "80;86;89;90a;100" as far as nvcc knows them. Default: those of the GPUs that
                           nvidia-smi lists; without one, where EARLYBERT_BUILD_CUDA is 1, "common"
    EARLYBERT_SANITIZE     1: what runs on the processor with AddressSanitizer and UndefinedBehaviorSanitizer, which
                           a process has to preload; see tests/sanitize.py
    CXX                    the C++ compiler, default g++, else c++
    MAX_JOBS               most compilers at a time, default by cores and free memory
"""

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
SOURCES = ROOT / "csrc"
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
#: The record of a build: one for each Python, whose modules stand side by side in a source tree.
RECORD = f"_build{SUFFIX.removesuffix('.so')}.json"
#: Ampere, Ada, Hopper, and Blackwell, whose code runs on all of compute capability 10.x.
COMMON_ARCHS = ("80", "86", "89", "90a", "100")

CXX_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-Wall", "-Wextra", "-fvisibility=hidden"]
# Of what hands kernels to Python: nothing in it takes time but compiling it.
BINDING_FLAGS = [*CXX_FLAGS, "-O1"]
# GCC's own AVX-512 headers set off the last two warnings.
KERNEL_FLAGS = ["-fno-math-errno", "-fno-trapping-math", "-Wno-uninitialized", "-Wno-maybe-uninitialized"]
AVX2_FLAGS = ["-mavx2", "-mfma"]
AVX512_FLAGS = [
    *AVX2_FLAGS,
    *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"),
]
# AMX's products are in the same kernels, and run where the processor has it.
BFLOAT16_FLAGS = [*AVX512_FLAGS, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"]
SANITIZE_FLAGS = ["-g", "-O2", "-fno-omit-frame-pointer", "-fsanitize=address,undefined"]
SANITIZE_FLAGS += ["-fno-sanitize-recover=undefined"]


class CannotBuild(Exception):
    """Why an extension cannot be built here."""


def switch(name: str, values: tuple[str, ...] = ("auto", "1", "0")) -> str:
    """The value of a build switch, the first of `values` where it is not set."""
    value = os.environ.get(name, "").strip().lower() or values[0]
    if value not in values:
        raise SystemExit(f"{name}={value!r}: expected {', '.join(values[:-1])} or {values[-1]}")
    return value


def cuda_archs_asked_for() -> str:
    """The architectures that the environment names, as written; empty for none."""
    return os.environ.get("EARLYBERT_CUDA_ARCHS", "").strip()


def cuda_archs(nvcc: str) -> tuple[str, str]:
    """The architectures to compile for, and where the list comes from; CannotBuild where nvcc knows none of it."""
    if cuda_archs_asked_for() not in ("", "common"):
        return cuda_archs_asked_for(), "EARLYBERT_CUDA_ARCHS"
    try:
        listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise CannotBuild(f"{nvcc} --list-gpu-arch does not run ({error})") from None
    known = set(re.findall(r"compute_(\d+)", listed))
    if not cuda_archs_asked_for():
        here = gpus_here()
        if not here and switch("EARLYBERT_BUILD_CUDA") == "auto":
            raise CannotBuild("nvidia-smi lists no GPU here; EARLYBERT_BUILD_CUDA=1 builds it for the common ones")
        if here := [arch for arch in here if arch.rstrip("a") in known]:
            return ";".join(here), "the GPUs that nvidia-smi lists"
    common = [arch for arch in COMMON_ARCHS if arch.rstrip("a") in known]
    if not common:
        raise CannotBuild(f"{nvcc} knows none of the architectures {', '.join(COMMON_ARCHS)}")
    return ";".join(common), "the common ones"


def gpus_here() -> list[str]:
    """The architectures of the GPUs of this machine; none without a driver."""
    try:
        command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    capabilities = sorted({(int(major), int(minor)) for major, minor in re.findall(r"^(\d+)\.(\d)$", listed, re.M)})
    # What Hopper has and no other, wgmma, is in its code only under the name 90a.
    return [f"{major}{minor}" + ("a" if (major, minor) == (9, 0) else "") for major, minor in capabilities]


def cuda_arch_flags(text: str) -> list[str]:
    """nvcc's -gencode flags for a list such as "80;90a;100+PTX"."""
    entries = [entry.strip() for entry in text.split(";") if entry.strip()]
    parsed = [re.fullmatch(r"(\d{2,3})([af]?)(\+PTX)?", entry) for entry in entries]
    if not entries or None in parsed:
        raise SystemExit(f'EARLYBERT_CUDA_ARCHS={text!r}: expected a list such as "80;90a;100+PTX"')
    portable = {m[1] for m in parsed if m[3] and not m[2]}
    if any(m[3] and m[2] for m in parsed):
        raise SystemExit(f"EARLYBERT_CUDA_ARCHS={text!r}: PTX of an 'a' or 'f' architecture is not portable")
    plain = sorted((m[1] for m in parsed if not m[2]), key=int)
    portable.update(plain[:1])
    targets = [(m[1] + m[2], f"sm_{m[1]}{m[2]}") for m in parsed]
    targets += [(arch, f"compute_{arch}") for arch in sorted(portable, key=int)]
    return [f"-gencode=arch=compute_{arch},code={code}" for arch, code in targets]


def jobs() -> int:
    """Compilers to run at a time: one a core, and 2 GiB of free memory for each."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if os.environ.get("MAX_JOBS", "").isdigit():
        cores = int(os.environ["MAX_JOBS"])
    try:
        free = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        free = None
    return max(1, min(cores, int(free[1]) // 2**21) if free else cores)


def version_of(command: list[str]) -> str:
    """What a compiler says it is; CannotBuild if it does not run."""
    try:
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise CannotBuild(f"{shlex.join(command)} does not run ({error})") from None
    lines = done.stdout.strip().splitlines() or ["unknown"]
    return next((line for line in lines if "release" in line), lines[0])


def find_cxx() -> list[str]:
    """The C++ compiler's command."""
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    found = shutil.which("g++") or shutil.which("c++")
    if not found:
        raise CannotBuild("no C++ compiler was found (g++ or c++ on PATH, or CXX)")
    return [found]


def find_nvcc() -> str:
    """The path of nvcc."""
    for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")):
        if home and (Path(home) / "bin/nvcc").exists():
            return str(Path(home) / "bin/nvcc")
    found = shutil.which("nvcc")
    if not found:
        raise CannotBuild("nvcc was not found (in CUDA_HOME/bin or on PATH)")
    return found


class Plan:
    """The compile and link commands of one extension, and the record of them."""

    def __init__(self, name: str, cxx: list[str]):
        self.name = name
        self.objects: list[tuple[Path, str, list[str]]] = []  # source, the object's path in the build folder, command
        self.link: list[str] = []
        self.record: dict = {"compiler": version_of(cxx)}


def plan_cpu(cxx: list[str], includes: list[str]) -> Plan:
    """The CPU extension: every kernel once for each instruction set, chosen at run time."""
    plan = Plan("_cpu", cxx)
    # clang's OpenMP calls its own runtime, and torch has loaded GNU's: two would fight for the cores.
    openmp = "-fopenmp-simd" if "clang" in plan.record["compiler"] else "-fopenmp"
    sanitize = SANITIZE_FLAGS if switch("EARLYBERT_SANITIZE", ("0", "1")) == "1" else []
    flags = [*CXX_FLAGS, *sanitize]
    sets = {"baseline": []}
    if platform.machine() in ("x86_64", "AMD64"):
        sets.update(avx2=AVX2_FLAGS, avx512=AVX512_FLAGS, avx512_bf16=BFLOAT16_FLAGS)
    for source in sorted((SOURCES / "cpu").glob("*.cpp")):
        for isa, isa_flags in sets.items():
            command = [*cxx, *flags, *KERNEL_FLAGS, openmp, *isa_flags, f"-DEARLYBERT_ISA={isa}"]
            plan.objects.append((source, f"_cpu/{source.stem}.{isa}.o", command))
    for source in sorted((SOURCES / "bindings").glob("cpu*.cpp")):
        plan.objects.append((source, f"_cpu/{source.stem}.binding.o", [*cxx, *BINDING_FLAGS, *sanitize, *includes]))
    # Not -fopenmp: the symbols come from the runtime that torch has loaded (see backends/cpu/__init__.py). `now`
    # makes a missing one an ImportError instead of a crash at the first call.
    plan.link = [*cxx, *flags, "-shared", *(["-Wl,-z,now"] if sys.platform == "linux" else [])]
    plan.record.update(flags=[*flags, *KERNEL_FLAGS, openmp], instruction_sets=list(sets))
    return plan


def plan_cuda(cxx: list[str], includes: list[str]) -> Plan:
    """The CUDA extension: device code by nvcc, with the CUDA runtime linked statically."""
    nvcc = [find_nvcc(), *(["-ccbin", cxx[-1]] if os.environ.get("CXX") else [])]
    archs, archs_from = cuda_archs(nvcc[0])
    gencode = cuda_arch_flags(archs)
    plan = Plan("_cuda", cxx)
    flags = ["-std=c++17", "-O3", "-cudart=static", "-Werror=all-warnings", "-Wno-deprecated-gpu-targets"]
    host = "-Xcompiler=-fPIC,-Wall,-Wextra,-fvisibility=hidden"
    # The longest first: what takes longest to compile does not begin last.
    sources = sorted((SOURCES / "cuda").glob("*.cu"), key=lambda source: -source.stat().st_size)
    threads = max(1, jobs() // len(sources))  # architectures of one file at a time; ninja runs the files
    for source in sources:
        command = [*nvcc, *flags, host, f"--threads={threads}", *gencode]
        plan.objects.append((source, f"_cuda/{source.stem}.o", command))
    plan.objects += cuda_bindings("_cuda", "bindings", [*cxx, *BINDING_FLAGS, *includes])
    # torch loads its own CUDA runtime globally; hidden, ours cannot be mixed up with it.
    plan.link = [*nvcc, "-shared", "-cudart=static", "-Xlinker=--exclude-libs,ALL", *gencode]
    plan.record.update(nvcc=version_of(nvcc[:1]), archs=archs, archs_from=archs_from, flags=[*flags, host, *gencode])
    return plan


def plan_cuda_emulated(cxx: list[str], includes: list[str]) -> Plan:
    """The CUDA extension's sources for the processor (csrc/emulator), to test them where there is no GPU."""
    plan = Plan("_cuda_emulated", cxx)
    sanitize = SANITIZE_FLAGS if switch("EARLYBERT_SANITIZE", ("0", "1")) == "1" else []
    # -O1: what takes time is switching between threads; the language's pragmas are not g++'s.
    flags = [*CXX_FLAGS, "-O1", "-Wno-unknown-pragmas", *sanitize, f"-I{SOURCES / 'emulator'}"]
    kernels = [*cxx, *flags, "-x", "c++"]
    for source in [*sorted((SOURCES / "cuda").glob("*.cu")), *sorted((SOURCES / "emulator").glob("*.cpp"))]:
        plan.objects.append((source, f"_cuda_emulated/{source.stem}.o", kernels))
    shared = "_cuda_emulated" if sanitize else "bindings"  # as compiled for _cuda, which is never sanitized
    binding = [*cxx, *BINDING_FLAGS, *sanitize, *includes]
    plan.objects += cuda_bindings("_cuda_emulated", shared, binding, "-DEARLYBERT_EMULATED")
    plan.link = [*cxx, *flags, "-shared"]
    plan.record.update(flags=flags)
    return plan


def cuda_bindings(name: str, shared: str, command: list[str], *define: str) -> list[tuple[Path, str, list[str]]]:
    """The objects of `Plan` that hand the CUDA kernels to Python; all but the module's own, cuda.cpp, in `shared`."""
    sources = sorted((SOURCES / "bindings").glob("cuda_*.cpp"))
    module = (SOURCES / "bindings" / "cuda.cpp", f"{name}/cuda.binding.o", [*command, *define])
    return [module, *((source, f"{shared}/{source.stem}.o", command) for source in sources)]


def run_ninja(plan: Plan, work: Path, target: Path) -> None:
    """Compiles what has changed and links `target`; CannotBuild with ninja's last lines if that fails."""
    import ninja
    from ninja.ninja_syntax import Writer

    work.mkdir(parents=True, exist_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    manifest = work / f"{plan.name}.ninja"
    with open(manifest, "w") as file:
        n = Writer(file, width=1000)
        n.rule("compile", "$tool -MMD -MF $out.d -c $in -o $out", depfile="$out.d", deps="gcc")
        n.rule("link", "$tool $in -o $out")
        objects = [str(work / path) for _, path, _ in plan.objects]
        for output, (source, _, command) in zip(objects, plan.objects, strict=True):
            command = shlex.join(command).replace("$", "$$")
            n.build(output, "compile", str(source), variables={"tool": command})
        n.build(str(target), "link", objects, variables={"tool": shlex.join(plan.link).replace("$", "$$")})
    binary = Path(ninja.BIN_DIR) / "ninja"
    command = [str(binary if binary.exists() else "ninja"), "-C", str(work), "-f", str(manifest), "-j", str(jobs())]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except OSError as error:
        raise CannotBuild(f"ninja does not run ({error})") from None
    if done.returncode != 0:
        print(done.stdout, flush=True)
        # The word alone: a command has options such as -Werror.
        errors = [line for line in done.stdout.splitlines() if re.search(r"\berror\b", line)]
        raise CannotBuild("the compilation failed: " + (errors or ["see the output above"])[0].strip())


PLANS = {"_cpu": plan_cpu, "_cuda": plan_cuda, "_cuda_emulated": plan_cuda_emulated}


class NinjaBuild(build_ext):
    """setuptools' build_ext, with the compiling left to ninja."""

    def kernels_dir(self) -> Path:
        """The earlybert_kernels directory that the modules are built into."""
        return (ROOT if self.inplace else Path(self.build_lib).resolve()) / "earlybert_kernels"

    def run(self) -> None:
        if cuda_archs_asked_for() not in ("", "common"):
            cuda_arch_flags(cuda_archs_asked_for())  # a mistake in the list is one even where nvcc is missing
        record = {"python": platform.python_version(), "platform": sysconfig.get_platform()}
        for name, make_plan in PLANS.items():
            record[name] = self.build_module(name, make_plan, f"EARLYBERT_BUILD{name.upper()}")
        self.kernels_dir().mkdir(parents=True, exist_ok=True)
        (self.kernels_dir() / RECORD).write_text(json.dumps(record, indent=2) + "\n")

    def build_module(self, name: str, make_plan, variable: str) -> dict:
        """Builds one module as its switch says; returns its part of the record."""
        target = self.kernels_dir() / (name + SUFFIX)
        mode = switch(variable, ("0", "1") if name == "_cuda_emulated" else ("auto", "1", "0"))
        try:
            if mode == "0":
                raise CannotBuild(f"{variable}=0")
            try:
                import pybind11
            except ImportError:
                raise CannotBuild("pybind11 is not installed") from None
            includes = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
            plan = make_plan(find_cxx(), includes)
            run_ninja(plan, Path(self.build_temp).resolve(), target)
        except (CannotBuild, ImportError) as error:
            if mode == "1":
                raise SystemExit(f"earlybert-kernels: {variable}=1, but: {error}") from None
            target.unlink(missing_ok=True)  # one from an earlier build would contradict the record
            print(f"earlybert-kernels: earlybert_kernels.{name} left out: {error}", flush=True)
            return {"built": False, "reason": str(error)}
        compiler = plan.record.get("nvcc", plan.record["compiler"])
        print(f"earlybert-kernels: built earlybert_kernels.{name} with {compiler}", flush=True)
        return {"built": True, **plan.record}

    def get_outputs(self) -> list[str]:
        built = [self.kernels_dir() / (name + SUFFIX) for name in PLANS]
        return [str(path) for path in [*built, self.kernels_dir() / RECORD] if path.exists()]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


# Without sources: they mark the wheel as one for this platform, and NinjaBuild does the rest.
MODULES = [Extension(f"earlybert_kernels.{name}", sources=[]) for name in PLANS]

if __name__ == "__main__":
    setup(ext_modules=MODULES, cmdclass={"build_ext": NinjaBuild})
