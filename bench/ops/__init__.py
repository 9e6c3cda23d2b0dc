"""The microbenchmarks of the ops, a file each, and how their rows are made."""
