"""What a block keeps for its gradient."""

import flax.linen as nn
import jax

# Of linear layers; attention's scores and weights, whose products have batch axes, are not kept.
PRODUCTS = jax.checkpoint_policies.dots_with_no_batch_dims_saveable


def rematerialised(block: type[nn.Module], everything: bool) -> type[nn.Module]:
    """A block, to be scanned over, that recomputes in the backward pass what it does not keep.

    Args:
      everything: keep what goes into the block alone, so that all of it is computed again, about a
        third more arithmetic of a training step. Otherwise the outputs of linear layers are kept
        too, which is nearly all of the arithmetic; norms, modulation, rotations, nonlinearities and
        the attention over them are cheaper computed again than kept: of a step of BAR-B two thirds
        of what would be kept, much of it float32.
    """
    return nn.remat(block, prevent_cse=False, policy=None if everything else PRODUCTS)
