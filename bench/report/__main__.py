"""`python -m bench.report`."""

from .report import main

main()
