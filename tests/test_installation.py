"""A clone in which Python is started hides what was installed from it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import earlybert_kernels

PACKAGE = Path(earlybert_kernels.__file__).parent


@pytest.mark.parametrize("metadata_in_clone", [False, True])
@pytest.mark.parametrize("clone_is_built", [False, True])
def test_a_clone_that_hides_an_installation_says_so(
    tmp_path: Path, clone_is_built: bool, metadata_in_clone: bool
) -> None:
    clone, site = tmp_path / "clone", tmp_path / "site"
    for root, is_built in ((clone, clone_is_built), (site, True)):
        package = root / "earlybert_kernels"
        package.mkdir(parents=True)
        shutil.copy(PACKAGE / "installation.py", package / "__init__.py")
        if is_built:
            (package / "_cpu.so").touch()
    roots = [(site, "earlybert_kernels-0.dist-info", "METADATA")]
    if metadata_in_clone:  # as a build leaves it there
        roots.append((clone, "earlybert_kernels.egg-info", "PKG-INFO"))
    for root, folder, name in roots:
        (root / folder).mkdir()
        (root / folder / name).write_text("Metadata-Version: 2.1\nName: earlybert-kernels\nVersion: 0\n")
    code = f"import sys; sys.path.insert(1, {str(site)!r}); import earlybert_kernels as e; e.warn_if_shadowing()"
    done = subprocess.run([sys.executable, "-c", code], cwd=clone, capture_output=True, text=True, check=True)
    assert ("hides the installation" in done.stderr.replace("\n", " ")) is not clone_is_built


def test_what_is_installed_hides_nothing(recwarn: pytest.WarningsRecorder) -> None:
    earlybert_kernels.installation.warn_if_shadowing()
    assert not recwarn
