"""Fixtures for the tests of models."""

import pytest
from tiny_bert import ODD


@pytest.fixture(params=list(ODD))
def shape(request) -> str:
    """Each odd shape in turn."""
    return request.param
