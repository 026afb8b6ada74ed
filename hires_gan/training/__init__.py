"""The training loop, its backends, schedule, samples and status; it knows nothing of families."""
