"""Files with a word and its tag a line, and an empty line behind each sentence, as CoNLL's shared tasks have them."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa

from ..errors import UsageError
from .columns import WordTags

#: What stands in the place of the first word of a line that separates documents, and is no sentence.
_DOCUMENT = "-DOCSTART-"


def read_conll(path: Path) -> pa.Table:
    """The sentences of a file, with the columns `tokens` and, if lines have more than a word, `ner_tags`.

    Args:
        path: fields are separated by tabs or spaces; the first is the word, the last its tag.

    Raises:
        UsageError: some words have a tag and others do not.
    """
    sentences: list[list[list[str]]] = [[]]
    tagged: bool | None = None
    # By line feeds alone, and fields by tabs and spaces: words have other separators in them.
    for number, line in enumerate(path.read_text("utf-8-sig").split("\n"), 1):
        fields = re.split(r"[ \t]+", line.strip(" \t\r"))
        if fields[0] in ("", _DOCUMENT):
            sentences.append([])
            continue
        tagged = len(fields) > 1 if tagged is None else tagged
        if tagged != (len(fields) > 1):
            raise UsageError(
                f"{path}, line {number}: expected {'a word and its tag' if tagged else 'a word alone'}, as in the "
                f"lines before, found {' '.join(fields)!r:.60}"
            )
        sentences[-1].append(fields)
    kept = [sentence for sentence in sentences if sentence]
    columns = {WordTags.usual_texts[0]: [[fields[0] for fields in sentence] for sentence in kept]}
    if tagged:
        columns[WordTags.usual_labels[0]] = [[fields[-1] for fields in sentence] for sentence in kept]
    strings = pa.list_(pa.string())
    return pa.table({name: pa.array(rows, strings) for name, rows in columns.items()})
