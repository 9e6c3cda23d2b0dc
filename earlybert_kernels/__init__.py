"""Kernels and drop-in modules that make EarlyBERT (arXiv 2101.00063) fast: masked, gated and compact encoder layers.

Importing the package never touches a GPU.
"""

from . import ops
from .capture import CapturedStep
from .collator import PackedCollator
from .compact import compact, to_stock
from .convert import convert, is_converted, restore
from .gates import enable_gates, head_gates, neuron_gates, remove_gates
from .installation import version, warn_if_shadowing
from .masking import apply_ticket, check_ticket, clear_ticket, reserve_masks
from .models import check_convertible
from .ops import use_backend
from .optim import AdamW, Lamb
from .pruned import load_pruned
from .ticket import Ticket

__version__ = version()
warn_if_shadowing()

__all__ = [
    "AdamW",
    "CapturedStep",
    "Lamb",
    "PackedCollator",
    "Ticket",
    "apply_ticket",
    "check_convertible",
    "check_ticket",
    "clear_ticket",
    "compact",
    "convert",
    "enable_gates",
    "head_gates",
    "is_converted",
    "load_pruned",
    "neuron_gates",
    "ops",
    "remove_gates",
    "reserve_masks",
    "restore",
    "to_stock",
    "use_backend",
]
