import json
from pathlib import Path

import numpy
import pytest
import torch

import earlybert_kernels as ek


def test_lists_are_sorted_and_cannot_be_changed_from_outside():
    ticket = ek.Ticket([[3, 1], [0]], [[5, 2, 9], [1]])
    assert ticket.heads == [[1, 3], [0]] and ticket.neurons == [[2, 5, 9], [1]]
    ticket.heads[0].append(7)
    assert ticket.heads == [[1, 3], [0]]
    assert ticket == ek.Ticket([[1, 3], [0]], [[9, 5, 2], [1]])
    assert len({ticket, ek.Ticket([[1, 3], [0]], [[9, 5, 2], [1]])}) == 1


def test_save_and_load(tmp_path):
    ticket = ek.Ticket([[1, 3], [0]], [[2, 5, 9], [1]])
    path = tmp_path / "ticket.json"
    ticket.save(path)
    assert ek.Ticket.load(path) == ticket
    assert json.loads(path.read_text()) == {"format": 1, "heads": [[1, 3], [0]], "neurons": [[2, 5, 9], [1]]}
    assert [p.name for p in tmp_path.iterdir()] == ["ticket.json"]


def test_a_ticket_says_of_which_model_it_is(tmp_path):
    ticket = ek.Ticket([[1, 3], [0]], [[2, 5, 9], [1]], heads_of=[4, 2], neurons_of=[10, 8])
    path = tmp_path / "ticket.json"
    ticket.save(path)
    again = ek.Ticket.load(path)
    assert (again.heads_of, again.neurons_of) == ([4, 2], [10, 8])
    assert again == ticket == ek.Ticket(ticket.heads, ticket.neurons)
    ticket.check_sizes([4, 2], [10, 8])
    with pytest.raises(ValueError, match="of a model with 4 heads in layer 0, and this one has 12 there"):
        ticket.check_sizes([12, 2], [10, 8])
    with pytest.raises(ValueError, match="of a model with 8 neurons in layer 1, and this one has 9 there"):
        ticket.check_sizes([4, 2], [10, 9])
    for sizes in (
        {"heads_of": [4, 2]},
        {"heads_of": [3, 2], "neurons_of": [10, 8]},
        {"heads_of": [4], "neurons_of": [10]},
    ):
        with pytest.raises(ValueError, match="or neither|only 3 there|has 2 layers"):
            ek.Ticket(ticket.heads, ticket.neurons, **sizes)


def test_files_from_before_the_format_had_a_number_are_read(tmp_path):
    path = tmp_path / "ticket.json"
    path.write_text('{"heads": [[1, 3], [0]], "neurons": [[2, 5, 9], [1]]}')
    ticket = ek.Ticket.load(path)
    assert ticket == ek.Ticket([[1, 3], [0]], [[2, 5, 9], [1]]) and ticket.heads_of is None
    path.write_text('{"format": 2, "heads": [[0]], "neurons": [[0]]}')
    with pytest.raises(ValueError, match="its format is 2, and this version"):
        ek.Ticket.load(path)


@pytest.mark.parametrize("mask", [[True, False], torch.tensor([True, False]), numpy.array([False, True])])
def test_a_mask_is_no_list_of_indices(mask):
    with pytest.raises(TypeError, match="is no mask"):
        ek.Ticket([mask], [[0]])
    assert ek.Ticket([torch.tensor([2, 0])], [numpy.array([1])]) == ek.Ticket([[0, 2]], [[1]])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"heads": [[0]]}',
        '{"heads": [[0.5]], "neurons": [[1]]}',
        '{"heads": [[true]], "neurons": [[false]]}',
        '{"heads": 3, "neurons": 4}',
    ],
)
def test_malformed_files_are_refused_by_name(tmp_path, text):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="broken.json is not a ticket"):
        ek.Ticket.load(path)
    with pytest.raises(FileNotFoundError):
        ek.Ticket.load(tmp_path / "absent.json")


def test_distance():
    a = ek.Ticket([[0, 1]], [[0, 1, 2, 3]])
    b = ek.Ticket([[1, 2]], [[0, 1, 2, 3]])
    assert a.distance(a) == 0
    assert a.distance(b) == b.distance(a) == 2 / 12
    assert a.distance(b, of="heads") == 0.5
    assert a.distance(b, of="neurons") == 0
    assert a.distance(ek.Ticket([[2, 3]], [[4, 5, 6, 7]])) == 1
    with pytest.raises(ValueError, match="of='head': expected 'heads', 'neurons' or None"):
        a.distance(b, of="head")
    with pytest.raises(ValueError, match="1 and 2 layers"):
        a.distance(ek.Ticket([[0], [0]], [[0], [0]]))


def test_bad_tickets_are_refused():
    with pytest.raises(ValueError, match="2 layers of heads and 1 of neurons"):
        ek.Ticket([[0], [1]], [[0]])
    with pytest.raises(ValueError, match="heads of layer 1 repeat"):
        ek.Ticket([[0], [1, 1]], [[0], [0]])
    with pytest.raises(ValueError, match="neurons of layer 0 repeat an index or hold a negative"):
        ek.Ticket([[0]], [[-1]])
    ticket = ek.Ticket([[0, 5]], [[0]])
    ticket.check_sizes([6], [1])
    with pytest.raises(ValueError, match="unit 5 of the heads of layer 0, but the model has only 4"):
        ticket.check_sizes([4], [1])
    with pytest.raises(ValueError, match="has 1 layers, the model 2"):
        ticket.check_sizes([6, 6], [1, 1])
    with pytest.raises(ValueError, match="keeps no neurons in layer 0"):
        ek.Ticket([[0]], [[]]).check_sizes([4], [4])


def test_saving_follows_a_link_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    link, target = tmp_path / "link.json", tmp_path / "target.json"
    link.symlink_to(target)
    ek.Ticket([[0]], [[1]]).save(link)
    assert link.is_symlink()
    assert ek.Ticket.load(target) == ek.Ticket([[0]], [[1]])
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
        with pytest.raises(OSError, match="no space left"):
            ek.Ticket([[2]], [[3]]).save(link)
    assert {path.name for path in tmp_path.iterdir()} == {"link.json", "target.json"}
    assert ek.Ticket.load(target) == ek.Ticket([[0]], [[1]])
