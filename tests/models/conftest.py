"""Fixtures for the tests of models."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from tests.helpers.tiny_bert import ODD, tiny_model


@pytest.fixture(params=list(ODD))
def shape(request) -> str:
    """Each odd shape in turn."""
    return request.param


@pytest.fixture(params=[*ODD, "minilm"])
def bert(request) -> torch.nn.Module:
    """A stock `BertForSequenceClassification` of three labels: each odd shape in turn, then the real MiniLM."""
    if request.param != "minilm":
        return tiny_model(request.param)
    folder = request.getfixturevalue("minilm")
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3).eval()
