"""What `bench.step` times: variants of a model, batches to train them on, a training step, and its peak memory."""
