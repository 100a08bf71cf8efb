"""Train state, optimiser, the loop, checkpoints and logs."""
