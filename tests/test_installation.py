from __future__ import annotations

from pathlib import Path

import pytest

from earlybert_kernels import installation


class Found:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def locate_file(self, name: str) -> Path:
        return self.folder / name


@pytest.mark.parametrize(("built_here", "warns"), [(False, True), (True, False)])
def test_an_unbuilt_source_tree_that_hides_an_installation_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder, built_here: bool, warns: bool
) -> None:
    here, installed = tmp_path / "clone" / "earlybert_kernels", tmp_path / "site" / "earlybert_kernels"
    for folder in (here, installed):
        folder.mkdir(parents=True)
    (installed / "_cpu.so").touch()
    if built_here:
        (here / "_cpu.so").touch()
    monkeypatch.setattr(installation, "_HERE", here)
    monkeypatch.setattr(installation, "distribution", lambda name: Found(tmp_path / "site"))
    installation.warn_if_shadowing()
    assert ["hides the installation" in str(warning.message) for warning in recwarn] == [True] * warns


def test_what_is_installed_here_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    here = tmp_path / "earlybert_kernels"
    here.mkdir()
    monkeypatch.setattr(installation, "_HERE", here)
    monkeypatch.setattr(installation, "distribution", lambda name: Found(tmp_path))
    installation.warn_if_shadowing()
    assert not recwarn
