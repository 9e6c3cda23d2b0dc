"""What is compiled before a machine with a GPU needs it: our CUDA extension, and what another machine has compiled."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: What bench/gpu_bundle.sh makes.
BUNDLE = ROOT / "build" / "gpu" / "bundle"
CACHES = ROOT / "build" / "gpu" / "caches"
#: Of a cache's files, what is not read again.
_INTERMEDIATE = (".ttir", ".ttgir", ".llir", ".ptx", ".source")
#: Bytes of `caches.tar.gz`, at most.
_CACHES_SIZE = 15 * 2**20


def take_extension() -> bool:
    """Puts the bundle's CUDA extension in place, unless one is there; whether there is one that loads."""
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    names = (f"_cuda{suffix}", f"_build{suffix.removesuffix('.so')}.json")
    library = ROOT / "earlybert_kernels" / names[0]
    if not library.exists() and all((BUNDLE / name).exists() for name in names):
        for name in names:
            shutil.copyfile(BUNDLE / name, library.parent / name)
    code = "import sys, importlib.util as u; u.module_from_spec(u.spec_from_file_location('_cuda', sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, str(library)], capture_output=True, text=True)
    if done.returncode != 0:
        print(f"no CUDA extension that loads, it is built: {(done.stderr.splitlines() or [''])[-1]}")
    return done.returncode == 0


def pack_caches(path: Path) -> None:
    """What was compiled, without what only people read; nothing where it is too large, or nothing was compiled."""
    files = [file for file in CACHES.rglob("*") if file.is_file() and not file.name.endswith(_INTERMEDIATE)]
    if not files or sum(file.stat().st_size for file in files) > 10 * _CACHES_SIZE:  # which takes long, and is too much
        print(f"{path.name}: of {len(files)} files, nothing is kept")
        return
    with tarfile.open(path, "w:gz", compresslevel=3) as tar:
        for file in files:
            tar.add(file, file.relative_to(CACHES))
    if path.stat().st_size > _CACHES_SIZE:
        print(f"{path.name} is too large, {path.stat().st_size >> 20} MiB, and left out")
        path.unlink()


def unpack_caches(path: Path) -> None:
    """Where nothing is compiled yet, takes what another machine has compiled."""
    if path.exists() and not CACHES.exists():
        with tarfile.open(path) as tar:
            tar.extractall(CACHES, filter="data")
