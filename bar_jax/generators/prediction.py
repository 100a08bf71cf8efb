"""What a host of real-valued tokens makes of a noisy sequence, in training."""

import flax.struct
import jax


class Prediction(flax.struct.PyTreeNode):
    """One training forward of a host, example by example.

    Attributes:
      loss: [B] the host's own loss, summed over tokens (and channels, and draws of time).
      weight: [B] what that sum is divided by, so that sum(loss) / sum(weight) is the published one.
      variational_loss: [B] or None; the part of `loss` that a head which learns its variance adds,
        and that the residual objective keeps; divided by the same weight.
      clean: [R, B, N', d] float32 the sequence recovered from the prediction, with R draws of time;
        tokens that were given stand there as they are.
      snr: [R, B] weight of the residual objective: alpha_bar / (1 - alpha_bar) of a host that
        predicts noise, 1 of a flow host.
    """

    loss: jax.Array
    weight: jax.Array
    variational_loss: jax.Array | None
    clean: jax.Array
    snr: jax.Array
