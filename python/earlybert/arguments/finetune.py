"""What fine-tuning can be told."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ..errors import UsageError
from .run import RunArguments, expect, help_field

#: Arguments that only some tasks know; see `Task.with_options`.
TASK_OPTIONS = (
    "doc_stride",
    "null_score_diff_threshold",
    "text_column",
    "text_pair_column",
    "label_column",
    "label_columns",
    "metrics",
)


@dataclass(frozen=True, kw_only=True)
class _OfTasks:
    """What a task is, and where its examples are; listed before the rest."""

    model: str = field(metadata={"help": "Folder or hub name of the model to start from."})
    task: str = help_field(
        "Task on a table of your own: classification, regression, multilabel (any number of labels of a text) or "
        "token-classification (a tag for each word, such as named entities); a task of GLUE in lower case (sst2, cola, "
        "mrpc, ...), squad, squad_v2 or pydocs.",
        "classification",
    )
    train_file: str | None = help_field(
        "The training file: a table with a header (.csv, .tsv, .jsonl, .json, .parquet), for token-classification also "
        "CoNLL's lines of a word and its tag (.conll); or one in the named task's format."
    )
    validation_file: str | None = help_field("The evaluation file, likewise. Default: one row in ten is held out.")
    test_file: str | None = help_field(
        "Write what the trained model says of this file's texts to test_predictions.jsonl, as earlybert predict does. "
        "It needs no labels."
    )
    do_predict: bool = help_field(
        "Without --test-file: write what it says of the GLUE task's own test split to test_predictions.tsv, as GLUE "
        "wants it.",
        False,
    )
    text_column: str | None = help_field(
        "The table's column with the texts, or for token-classification with lists of words. Default: the one named "
        "sentence or text, or tokens or words."
    )
    text_pair_column: str | None = help_field("The column with second texts, if texts come in pairs.")
    label_column: str | None = help_field(
        "The column with the labels: names, or whole numbers. Default: label. For multilabel, with lists of them; "
        "default: labels. For token-classification, with lists of tags, one for each word; default: ner_tags or tags."
    )
    label_columns: list[str] | None = field(
        default=None,
        metadata={
            "help": "multilabel: the columns of single labels, with 1 where a text has the label and 0 where not, in "
            "place of a column of lists, which .csv and .tsv cannot have."
        },
    )
    metrics: list[str] | None = field(
        default=None,
        metadata={
            "help": "Metrics of a table, the first of which runs are compared by. Default: accuracy f1_macro; for "
            "regression pearson mean_squared_error; for multilabel f1_micro f1_macro exact_match; for "
            "token-classification f1 precision recall (of entities) accuracy (of words)."
        },
    )
    dataset_name: str | None = help_field("A dataset of the hub, in place of --train-file.")
    dataset_config_name: str | None = help_field("Its configuration.")
    data_dir: str | None = help_field(
        "Folder with the named task's files as they are distributed, or a dataset saved by datasets. Default, for "
        "a named task: read from the hub."
    )


@dataclass(frozen=True, kw_only=True)
class FinetuneArguments(RunArguments, _OfTasks):
    """The arguments of `earlybert.finetune` and the flags of `earlybert finetune`.

    The defaults are the paper's for GLUE (arXiv 2101.00063, section 4.1) where it gives one.
    """

    max_length: int | None = help_field(
        "Tokens that the model is given at once: longer examples are cut, contexts of questions into windows. "
        "Default: 128, for squad 384."
    )
    doc_stride: int | None = help_field(
        "squad: tokens that neighbouring windows on a long context share. Default: a third of --max-length."
    )
    null_score_diff_threshold: float | None = help_field(
        "squad_v2: a question is left unanswered where that scores more than so much above its best answer. Default: 0."
    )

    def check(self) -> None:
        """See `RunArguments.check`."""
        super().check()
        if self.task == "mlm":
            raise UsageError("--task mlm: masked words are pre-trained on, by earlybert pretrain")
        stride, threshold = self.doc_stride, self.null_score_diff_threshold
        expect(stride is None or stride >= 0, self, "doc_stride", "0 or more")
        expect(threshold is None or math.isfinite(threshold), self, "null_score_diff_threshold", "a finite number")
