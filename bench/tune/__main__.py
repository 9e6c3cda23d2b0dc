"""`python -m bench.tune`."""

from .products import main

main()
