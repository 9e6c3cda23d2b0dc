"""Sequences with hidden words, of texts given one by one."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer

from earlybert.tasks.documents import Documents
from earlybert.tasks.masked_lm import MaskedLMTask


def encoded(tiny_bert: str, *documents: str, max_length: int = 8, **options: Any) -> Any:
    task = MaskedLMTask(**options)
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    return task.encode(tokenizer, Documents(Dataset.from_dict({"text": list(documents)})), max_length)
