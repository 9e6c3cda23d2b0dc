"""SQuAD's JSON in small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def qa(key: str = "q1", text: str = "Who?", answers: Any = (("Ada", 0),), **more: Any) -> dict[str, Any]:
    return {"id": key, "question": text, "answers": [{"text": t, "answer_start": s} for t, s in answers], **more}


def document(*qas: dict[str, Any], context: str = "Ada met Bob.", version: str = "1.1") -> dict[str, Any]:
    return {"version": version, "data": [{"title": "A", "paragraphs": [{"context": context, "qas": list(qas)}]}]}


def written(folder: Path, content: Any, name: str = "train-v1.1.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(content), encoding="utf-8")
    return path
