"""EarlyBERT (arXiv 2101.00063): find a structured lottery ticket in BERT early, and train only that.

The training programs around the kernel library `earlybert_kernels`: drawing tickets, noticing that one has
come to rest, and fine-tuning on tasks. The command line is `earlybert`; see `earlybert --help`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .arguments import RECIPES, FinetuneArguments, PretrainArguments
    from .programs.compare import compare
    from .programs.demo import demo
    from .programs.export import export
    from .programs.finetune import finetune
    from .programs.inference import evaluate, predict
    from .programs.plots import plot
    from .programs.pretrain import pretrain
    from .programs.push import push
    from .programs.report import report
    from .programs.study import Study, study
    from .programs.verify import verify
    from .search.callback import EarlyBertCallback
    from .search.detector import EarlyBirdDetector
    from .search.drawing import draw
    from .search.search import Search, SearchSettings

__all__ = [
    "RECIPES",
    "EarlyBertCallback",
    "EarlyBirdDetector",
    "FinetuneArguments",
    "PretrainArguments",
    "Search",
    "SearchSettings",
    "Study",
    "compare",
    "demo",
    "draw",
    "evaluate",
    "export",
    "finetune",
    "plot",
    "predict",
    "pretrain",
    "push",
    "report",
    "study",
    "verify",
]

_MODULES = {
    "RECIPES": "arguments",
    "EarlyBertCallback": "search.callback",
    "EarlyBirdDetector": "search.detector",
    "FinetuneArguments": "arguments",
    "PretrainArguments": "arguments",
    "Search": "search.search",
    "SearchSettings": "search.search",
    "Study": "programs.study",
    "compare": "programs.compare",
    "demo": "programs.demo",
    "draw": "search.drawing",
    "evaluate": "programs.inference",
    "export": "programs.export",
    "finetune": "programs.finetune",
    "plot": "programs.plots",
    "predict": "programs.inference",
    "pretrain": "programs.pretrain",
    "push": "programs.push",
    "report": "programs.report",
    "study": "programs.study",
    "verify": "programs.verify",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that `earlybert --help` need not wait for torch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
