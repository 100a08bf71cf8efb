"""Basis autoregression: a host that models y = A x in place of the image's tokens x.

Basis paper, section 3. The host knows nothing of A; what is learned of A is learned through y,
which is input and target, and through the reconstruction of the residual objective.
"""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from bar_jax.bases import (
    LEARNED,
    MATRIX,
    RANDOM,
    Basis,
    make_basis,
    objectives,
    permutation,
    transform,
)
from bar_jax.config import token_grid
from bar_jax.generators.prediction import Prediction
from bar_jax.generators.request import Request
from bar_jax.generators.shuffle import from_patches, to_patches
from bar_jax.losses import Sums
from bar_jax.nn.guidance import drop_labels
from bar_jax.runtime.arguments import check_labels, check_numbers
from bar_jax.runtime.mesh import gather_to_host


class Draws(flax.struct.PyTreeNode):
    """Random draws of one training step.

    Attributes:
      label: [B] uniform; the label is dropped where below `label_dropout`.
      order_choice: [B] uniform; the order is random where below the random share (RAR).
      order_places: [B, N] uniform; their argsort is the random order.
      host: of the host.
    """

    label: jax.Array
    order_choice: jax.Array
    order_places: jax.Array
    host: object


class BasisGenerator(nn.Module):
    """p(real-valued tokens of an image | class).

    Tokens enter and leave as the tokenizer knows them: [B, h w, c] in raster order.

    Attributes:
      host: models the sequence; `generators/xar.py`, `mar.py` or `diffusion.py`.
      basis: which A. A matrix is the parameter `basis` [N', N]; an order has none.
      token_grid: h, w, rows and columns of the tokenizer's tokens.
      patch_size: p; p x p tokens of c channels are one x_i of c p^2 channels, N = h w / p^2.
      objective: of a learned A, `bar` (the host's own loss) or `residual` (eq. 10).
      regularizer: weight of the mean of (A A^T - I)^2, while A is learned.
      snr_clip: largest weight of the residual objective; 0: no limit, as in the paper.
      label_dropout: share of examples trained without their class.
    """

    host: nn.Module
    basis: Basis
    token_grid: tuple[int, int]
    patch_size: int = 1
    objective: str = "bar"
    regularizer: float = 1.0
    snr_clip: float = 0.0
    label_dropout: float = 0.1

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of x."""
        return tuple(side // self.patch_size for side in self.token_grid)

    @property
    def token_shape(self) -> tuple[int, int]:
        """h w, c."""
        return self.token_grid[0] * self.token_grid[1], self.host.channels // self.patch_size**2

    token_dtype = jnp.float32

    @property
    def length(self) -> int:
        """Tokens that are written."""
        return self.host.length

    @property
    def prefix(self) -> int:
        """Positions in front of them."""
        return getattr(self.host, "prefix", 0)

    @property
    def native_order(self) -> np.ndarray:
        """[N] the host's own order of the tokens: raster, if it names no other."""
        places = np.arange(self.grid[0] * self.grid[1], dtype=np.int32)
        return getattr(self.host, "native_order", places)

    @property
    def takes_order(self) -> bool:
        """Whether the host network takes the place of each token."""
        return getattr(self.host, "takes_order", False)

    def setup(self):
        if self.basis.has_matrix:
            start = lambda key: jnp.asarray(self.start(), jnp.float32)
            self.matrix = self.param(MATRIX, start)

    @nn.nowrap
    def start(self, second_moment: np.ndarray | None = None) -> np.ndarray:
        """A as it starts, or as it always is; made of tokens without any, a random one."""
        return self.basis.matrix(self.grid, self.native_order, second_moment)

    @nn.nowrap
    def matrix_of(self, params: dict) -> np.ndarray:
        """A [N', N] float32 in main memory, also of a basis that is an order (not `random`)."""
        if MATRIX in params:
            return gather_to_host(params[MATRIX])
        return self.start().astype(np.float32)

    def draw(self, keys: jax.Array, batch_key: jax.Array | None = None) -> Draws:
        """Draws for a training step, each example's from its own key [B].

        Args:
          batch_key: of what the host draws once for a batch (MAR: how many tokens are hidden), the
            same for all pieces that the batch comes in; None: as the first example draws it.
        """
        own, host = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        length = self.grid[0] * self.grid[1]
        uniform = jax.vmap(lambda key: jax.random.uniform(key, (2 + length,)))(own)
        return Draws(
            label=uniform[:, 0],
            order_choice=uniform[:, 1],
            order_places=uniform[:, 2:],
            host=self.host.draw(host) if batch_key is None else self.host.draw(host, batch_key),
        )

    def loss(
        self,
        tokens: jax.Array,
        labels: jax.Array,
        draws: Draws,
        random_share: jax.Array | float,
        deterministic: bool,
        counted: jax.Array | None = None,
    ) -> Sums:
        """What training minimises, over a batch.

        Args:
          tokens: [B, h w, c].
          labels: [B] in 0..num_classes - 1.
          random_share: probability of a random order (RAR).
          deterministic: evaluation: every label kept; times and noise are drawn as in training.
            (Dropout needs a dropout rng.)
          counted: [B] bool, False where an example is padding; None: all count.

        Returns:
          Pairs of a sum and its weight: `loss`; `host_loss`, the host's own; and while A is learned
          `residual_loss` (if that is the objective) and `regularizer`.
        """
        check_labels(labels, self.host.num_classes - 1)
        check_numbers("tokens", tokens, labels.shape[0], *self.token_shape)
        if not deterministic:
            labels = drop_labels(labels, draws.label, self.label_dropout, self.host.num_classes)
        x = to_patches(tokens, self.token_grid, self.patch_size)
        y, order = self._sequence(x, draws, random_share)
        options = {} if order is None else {"order": order}
        found = self.host.predict(y, labels, draws.host, **options)
        weight = jnp.ones(labels.shape) if counted is None else counted.astype(jnp.float32)
        total, count = lambda rows: jnp.sum(rows * weight), jnp.sum(weight)
        sums = {"host_loss": total(found.loss / found.weight)}
        loss = sums["host_loss"]
        if self.basis.kind == LEARNED:
            if self.objective == "residual":
                sums["residual_loss"] = loss = total(self._residual(x, found))
                if found.variational_loss is not None:
                    loss += total(found.variational_loss / found.weight)
            sums["regularizer"] = objectives.regularizer(self.matrix) * count
            loss += self.regularizer * sums["regularizer"]
        return {"loss": (loss, count)} | {name: (value, count) for name, value in sums.items()}

    def _residual(self, x: jax.Array, found: Prediction) -> jax.Array:
        """Eq. 10 for each example, averaged over its draws of time: [B]."""
        snr = jnp.minimum(found.snr, self.snr_clip) if self.snr_clip else found.snr
        return jnp.mean(snr * objectives.residual(x, found.clean, self.matrix), axis=0)

    def _sequence(self, x, draws, random_share):
        """y, and the order that a host takes."""
        if self.basis.has_matrix:
            return transform.forward(self.matrix, x), None
        order = self._order(x.shape[0])
        if self.basis.kind == RANDOM:
            random = draws.order_choice, draws.order_places
            order = permutation.draw_orders(random_share, *random, order[0])
        return permutation.gather(x, order), order if self.takes_order else None

    @nn.nowrap
    def _order(self, batch: int) -> jax.Array:
        """[B, N] the fixed order."""
        order = self.basis.order(self.grid, self.native_order)
        return jnp.broadcast_to(jnp.asarray(order), (batch, order.size))

    def initialize(self, tokens: jax.Array, labels: jax.Array, keys: jax.Array) -> Sums:
        """Touches every parameter, for `init`: arguments as in `loss`."""
        return self.loss(tokens, labels, self.draw(keys), 0.0, deterministic=True)

    @nn.nowrap
    def sample(self, params: dict, request: Request) -> jax.Array:
        """Draws an image's tokens for each label, [B, h w, c] float32 in raster order.

        Image i depends on keys[i] alone.
        """
        return self.tokens(params, self.sample_sequence(params, request))

    @nn.nowrap
    def sample_sequence(self, params: dict, request: Request) -> jax.Array:
        """As `sample`, but y [B, N', d] as the host writes it."""
        request.check(self.host.num_classes)
        options = {}
        if self.takes_order and not self.basis.has_matrix:
            options["order"] = self._order(request.labels.shape[0])
        return self.host.sample(params["host"], request, **options)

    @nn.nowrap
    def tokens(self, params: dict, y: jax.Array) -> jax.Array:
        """The way back: a sequence y [B, N', d] -> tokens [B, h w, c]."""
        if self.basis.has_matrix:
            x = transform.inverse(params[MATRIX], y, self.basis.inverse)
        else:
            x = permutation.scatter(y, self._order(y.shape[0]))
        return from_patches(x, self.token_grid, self.patch_size)


def make_basis_generator(config: ConfigDict, host: nn.Module) -> BasisGenerator:
    """A host of real-valued tokens on the configured basis."""
    basis, generator = config.model.basis, config.model.generator
    return BasisGenerator(
        host=host,
        basis=make_basis(config),
        token_grid=token_grid(config),
        patch_size=generator.patch_size,
        objective=basis.objective,
        regularizer=basis.regularizer,
        snr_clip=basis.snr_clip,
        label_dropout=generator.label_dropout,
    )
