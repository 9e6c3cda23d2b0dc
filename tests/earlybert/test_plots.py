"""The pictures of a run."""

from __future__ import annotations

from earlybert.programs.plots import search_figure


def test_a_plot_without_checks_says_so() -> None:
    search = {"checks": [], "threshold": 0.1, "step": 3, "interval": 10, "drawn_by": "limit", "max_steps": 3}
    (axes,) = search_figure(search).axes
    assert [text.get_text() for text in axes.texts] == ["no two tickets were compared in 3 steps,\nat 10 a check"]
