"""What trains a tokenizer, and what every loss returns."""

import jax

# name -> (weighted sum, sum of weights) over the examples of a piece of a batch: pieces add up,
# and are divided once.
Sums = dict[str, tuple[jax.Array, jax.Array]]
