"""What a block keeps for its gradient."""

import flax.linen as nn
import jax
import jax.extend.core


def _worth_keeping(primitive: jax.extend.core.Primitive, *shapes: object, **params: object) -> bool:
    """Outputs of linear layers, and of cuDNN's attention, of which the weights are no output.

    XLA's attention is computed again: of its products, which have batch axes, one is the weights.
    """
    is_linear = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return "attention" in primitive.name or is_linear(primitive, *shapes, **params)


def rematerialised(block: type[nn.Module], everything: bool) -> type[nn.Module]:
    """A block, to be scanned over, that recomputes in the backward pass what it does not keep.

    Args:
      everything: keep what goes into the block alone, so that all of it is computed again, about a
        third more arithmetic of a training step. Otherwise the outputs of linear layers are kept
        too, which is nearly all of the arithmetic; norms, modulation, rotations, nonlinearities and
        attention's weights are cheaper computed again than kept: of a step of BAR-B two thirds of
        what would be kept, much of it float32.
    """
    return nn.remat(block, prevent_cse=False, policy=None if everything else _worth_keeping)
