"""Sets of arguments that go together, by name."""

from __future__ import annotations

from typing import Any

from .finetune import FinetuneArguments

#: What is not the paper's in what was best on SST-2, CoLA and MRPC, as docs/recipe.md shows.
_BEST: dict[str, Any] = {
    "search_epochs": 0.4,
    "search_learning_rate": 1e-4,
    "early_bird_threshold": 0.0,
    "score": "first-order",
    "ticket_weights": "searched",
    "ticket_epochs": 1.3,
    "learning_rate": 2e-4,
}
#: Arguments of fine-tuning by the name of their recipe: the paper's, which are the defaults, and what was found to be
#: best. `FinetuneArguments(..., **RECIPES["best"])` is what `--recipe best` is.
RECIPES: dict[str, dict[str, Any]] = {
    "paper": {name: getattr(FinetuneArguments, name) for name in _BEST},
    "best": _BEST,
}
