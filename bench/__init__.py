"""Benchmarks, one file a subject: `python -m bench.<subject>`."""
