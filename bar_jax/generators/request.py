"""What is asked of a sampler: the numbers that vary, and the settings it is compiled for."""

import flax.struct
import jax

from bar_jax.generators.settings import Settings
from bar_jax.nn.guidance import SCHEDULES
from bar_jax.runtime.arguments import check_labels, check_scale


class Kept(flax.struct.PyTreeNode):
    """Tokens of bits that are given, not drawn.

    Attributes:
      tokens: [B, N, k] in {0, 1}, in raster order.
      mask: [B, N] bool, True where a token is given; with token shuffling a token is given where
        all of its parts are.
    """

    tokens: jax.Array
    mask: jax.Array


class Request(flax.struct.PyTreeNode):
    """A batch of images that are asked for.

    Attributes:
      labels: [B] in 0..num_classes; num_classes is "no class".
      keys: [B], of which each image is drawn; None where all draws are given.
      guidance_scale: S; not used unless `settings.guided`.
      temperature: what noise is multiplied by.
      kept: tokens that are given; None: none are.
      settings: another program for each.
    """

    labels: jax.Array
    keys: jax.Array | None = None
    guidance_scale: jax.Array | float = 1.0
    temperature: jax.Array | float = 1.0
    kept: Kept | None = None
    settings: Settings = flax.struct.field(pytree_node=False, default=Settings(guided=False))

    @property
    def rows(self) -> int:
        """Rows of a batch of all branches: B, or with guidance 2 B."""
        return self.labels.shape[0] * (2 if self.settings.guided else 1)

    def guidance(self, done: jax.Array | int, total: int) -> jax.Array | None:
        """Scale of the guidance after `done` of `total`; None without."""
        if not self.settings.guided:
            return None
        return SCHEDULES[self.settings.guidance_schedule](self.guidance_scale, done, total)

    def check(self, num_classes: int) -> None:
        """Checks labels and numbers, where they are known.

        Raises:
          InputError: naming the one that is wrong.
        """
        check_labels(self.labels, num_classes)
        check_scale("temperature", self.temperature)
        if self.settings.guided:
            check_scale("guidance_scale", self.guidance_scale)
