"""What the compilers made of the kernels for GPUs, found out without one, and what is wrong with it.

`python -m earlybert_kernels.inspection.triton` and `python -m earlybert_kernels.inspection.cuda`; nothing here is
needed to run an op.
"""
