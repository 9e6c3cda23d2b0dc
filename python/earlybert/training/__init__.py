"""Training and evaluating one model on one split: batches, the loop, interrupts, time."""
