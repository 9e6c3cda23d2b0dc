"""What the tests of compiled backends run on."""

from typing import NamedTuple


class Target(NamedTuple):
    """A compiled backend, and the device that its tensors are on."""

    backend: str
    device: str
