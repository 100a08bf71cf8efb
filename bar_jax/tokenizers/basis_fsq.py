"""BAR-FSQ whose bits are those of basis coefficients: both papers in one tokenizer.

The encoder's latents z [N, k] become y = A z along the tokens (basis paper, eq. 4; Appendix E, the
first strategy), and the bits are those of y: with a suitable A the first tokens hold the outline of
an image and the later ones its detail. A bit has no size, so each row of A and channel has a
positive gain g: the code is that of y / g, and on the way back it counts as g times the code. The
decoder sees A^-1 of these.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from bar_jax.bases import MATRIX, Basis, make_basis, transform
from bar_jax.runtime.mesh import gather_to_host
from bar_jax.tokenizers import bar_fsq
from bar_jax.tokenizers.bar_fsq import BarFSQ
from bar_jax.tokenizers.fsq import quantize_centered

GAINS = "basis_gains"


class BasisReconstruction(NamedTuple):
    """What a basis tokenizer is trained on; the first three as of `bar_fsq.Reconstruction`.

    Attributes:
      codes: {-1, +1} [B, N', k] of the coefficients.
      z: latents [B, N, k] float32, centred.
      coefficients: [B, N', k] float32, the gains times the codes: what is left of A z.
    """

    images: jax.Array
    codes: jax.Array
    predicted_features: jax.Array | None
    z: jax.Array
    coefficients: jax.Array


class BasisFSQ(BarFSQ):
    """ViT encoder, basis, binary FSQ, back, ViT decoder.

    As `BarFSQ`, but tokens are bits {0, 1} of coefficients, [B, N', k] in the order of A's rows,
    and have no place in the image. With A = identity and gains of 1 it is `BarFSQ`.

    A is the parameter `basis` [N', N]; it acts on centred latents, whose signs are the codes, since
    it would move the place where the two levels meet away from where they do. The gains are
    exp(`basis_gains`) [N', k], 1 to begin with.

    Attributes:
      basis: which A.
      gains: whether there are gains; without them they are 1.
    """

    basis: Basis = Basis("identity")
    gains: bool = True

    @property
    def length(self) -> int:
        """N', tokens of an image: rows of A."""
        return self.basis.length(self.grid)

    def setup(self):
        super().setup()
        # The tree of SigLIP2's own weights, whose `features` are aimed at, has no basis.
        if not (self.is_initializing() or self.has_variable("params", MATRIX)):
            return
        self.matrix = self.param(MATRIX, lambda key: jnp.asarray(self.start(), jnp.float32))
        if self.gains:
            shape = (self.matrix.shape[0], self.bits)
            self.log_gains = self.param(GAINS, lambda key: jnp.zeros(shape))

    @nn.nowrap
    def start(self, second_moment: np.ndarray | None = None) -> np.ndarray:
        """A as it starts, or as it always is; made of latents without any, a random one.

        Args:
          second_moment: [N, N] of latents, see `bases.energy.second_moment`.
        """
        places = np.arange(self.grid[0] * self.grid[1], dtype=np.int32)
        return self.basis.matrix(self.grid, places, second_moment)

    @nn.nowrap
    def matrix_of(self, params: dict) -> np.ndarray:
        """A [N', N] float32 on the host."""
        return gather_to_host(params[MATRIX])

    def quantize(self, z: jax.Array) -> jax.Array:
        """Latents [B, N, k] -> codes {-1, +1} [B, N', k] of A z (straight-through)."""
        y = transform.forward(self.matrix, z)
        return quantize_centered(y / self._gains() if self.gains else y)

    def coefficients(self, codes: jax.Array) -> jax.Array:
        """Codes [B, N', k] -> the coefficients that they stand for; 0 stays 0."""
        return codes * self._gains() if self.gains else codes

    def _gains(self):
        return jnp.exp(self.log_gains)[None]

    def expand(self, codes: jax.Array) -> jax.Array:
        """Codes [B, N', k] -> the decoder's input [B, N, width]; 0 is one that is not known."""
        z = transform.inverse(self.matrix, self.coefficients(codes), self.basis.inverse)
        return self.quantizer.expand(z)

    def __call__(self, images: jax.Array) -> BasisReconstruction:
        """Images [B, H, W, 3] -> what training compares with them."""
        z = self.project(images)
        codes = self.quantize(z)
        return BasisReconstruction(*self._from_codes(codes), z, self.coefficients(codes))


def _make(config: ConfigDict, remat: bool) -> BasisFSQ:
    options = dict(basis=make_basis(config), gains=config.model.basis.gains)
    return bar_fsq.make(config, remat, BasisFSQ, **options)


KIND = bar_fsq.KIND._replace(make=_make, has_basis=True, sampling_fields=("tokens",))
