"""What commands do with the folder of a run: verify, plot and draw."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from earlybert.cli import main
from earlybert_kernels import Ticket
from tests.helpers.toy import PER_HEAD, PER_NEURON


def test_verify_proves_that_parameters_are_gone(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(run)]) == 0
    out = capsys.readouterr().out
    gone = 3 * PER_HEAD + 58 * PER_NEURON
    assert f"3 heads and 58 neurons dropped are {gone:,} parameters" in out
    assert "ok     the model has 9 heads and 86 neurons, exactly those of ticket.json" in out
    assert out.count("ok ") == 5
    assert "FAILED" not in out


def test_verify_fails_when_the_ticket_is_another(own_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ticket = Ticket.load(own_run / "ticket.json")
    Ticket(ticket.heads, [units[1:] for units in ticket.neurons]).save(own_run / "ticket.json")
    assert main(["verify", str(own_run)]) == 1
    assert "FAILED 3 heads and 61 neurons" in capsys.readouterr().out


def test_verify_fails_when_other_units_were_cut(own_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ticket = Ticket.load(own_run / "ticket.json")
    mirrored = [[47 - unit for unit in units] for units in ticket.neurons]
    Ticket(ticket.heads, mirrored).save(own_run / "ticket.json")
    assert main(["verify", str(own_run)]) == 1
    out = capsys.readouterr().out
    assert "FAILED the model has 9 heads and 86 neurons, not those of ticket.json" in out
    assert out.count("ok ") == 3


def test_verify_of_a_run_that_began_with_a_compact_model(
    flags: list[str], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its ticket names units of that model, which the result does not: there is one finding less."""
    argv = ["finetune", *flags, "--model", str(run / "model"), "--output-dir", str(tmp_path / "out")]
    assert main(argv) == 0
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.count("ok ") == 4


def test_verify_needs_the_model(own_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own_run / "model" / "model.safetensors").unlink()
    assert main(["verify", str(own_run)]) == 2
    assert "no model could be read there" in capsys.readouterr().err
    shutil.rmtree(own_run / "model")
    assert main(["verify", str(own_run)]) == 2
    assert "model: no such folder; expected the model of the run" in capsys.readouterr().err


def test_verify_fails_when_the_file_holds_more(own_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = own_run / "model" / "model.safetensors"
    save_file(load_file(path) | {"mask": torch.zeros(7)}, path, metadata={"format": "pt"})
    assert main(["verify", str(own_run)]) == 1
    assert "FAILED the saved file holds" in capsys.readouterr().out


def test_verify_and_plot_need_a_finished_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("verify", "plot"):
        assert main([command, str(tmp_path)]) == 2
        assert f"{tmp_path / 'metrics.json'}: no such file; expected the folder of a finished run" in (
            capsys.readouterr().err
        )


def test_verify_needs_the_ticket(own_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own_run / "ticket.json").write_text("{}")
    assert main(["verify", str(own_run)]) == 2
    assert "ticket.json is not a ticket" in capsys.readouterr().err
    (own_run / "ticket.json").unlink()
    assert main(["verify", str(own_run)]) == 2
    assert "ticket.json: no such file; expected the ticket of the run" in capsys.readouterr().err


def test_a_dense_run_has_nothing_to_verify_or_draw(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["finetune", *flags, "--output-dir", str(tmp_path / "out"), "--method", "dense"]) == 0
    assert main(["verify", str(tmp_path / "out")]) == 2
    assert "expected a run with a ticket, found a dense one" in capsys.readouterr().err
    assert main(["plot", str(tmp_path / "out")]) == 0
    assert "nothing to draw" in capsys.readouterr().out


@pytest.mark.usefixtures("pictures")
def test_plot_draws_the_pictures_again(own_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = [own_run / "search.png", own_run / "ticket.png"]
    before = [path.read_bytes() for path in pictures]
    for path in pictures:
        path.unlink()
    assert main(["plot", str(own_run)]) == 0
    assert capsys.readouterr().out.split() == [str(path) for path in pictures]
    assert [path.read_bytes() for path in pictures] == before
    for path in pictures:
        with Image.open(path) as picture:
            assert picture.size[0] >= 600
            assert len(picture.convert("L").getcolors()) > 5, "not blank"


def test_draw_makes_tickets_of_other_sizes(own_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same, smaller = own_run / "same.json", own_run / "smaller.json"
    assert main(["draw", str(own_run), str(same), "--head-ratio", "0.25"]) == 0
    assert Ticket.load(same) == Ticket.load(own_run / "ticket.json")
    argv = ["draw", str(own_run / "gates.safetensors"), str(smaller), "--neuron-ratio", "0.5", "--multiple-of", "8"]
    assert main(argv) == 0
    assert sum(map(len, Ticket.load(smaller).neurons)) == 72
    assert f"written to {smaller}" in capsys.readouterr().out
    assert main(["draw", str(own_run), str(smaller)]) == 2
    assert "smaller.json: there is such a file; give another path, or --overwrite" in capsys.readouterr().err
    assert sum(map(len, Ticket.load(smaller).neurons)) == 72
    assert main(["draw", str(own_run), str(smaller), "--overwrite"]) == 0
    assert sum(map(len, Ticket.load(smaller).neurons)) == 86
    smaller.unlink()
    assert main(["draw", str(own_run), str(smaller), "--neuron-ratio", "1.5"]) == 2
    assert "neuron_ratio: expected a share" in capsys.readouterr().err
    assert main(["draw", str(own_run / "model"), str(smaller)]) == 2
    assert "no such file" in capsys.readouterr().err
    assert main(["draw", str(own_run), str(own_run / "nowhere" / "t.json")]) == 2
    assert "nowhere is no folder" in capsys.readouterr().err
