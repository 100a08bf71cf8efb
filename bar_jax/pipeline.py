"""Trained models from Python: load a workdir or published files; sample, encode and decode."""

import os
from collections.abc import Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from bar_jax.config import FIELDS, settle, token_grid
from bar_jax.config.file import load_config
from bar_jax.config.validation import check_labels, check_sampling, validate
from bar_jax.data import codec
from bar_jax.generators import sampling_fields
from bar_jax.pretrained import published
from bar_jax.runtime import files, workdir
from bar_jax.runtime.arguments import LARGEST, array, described, integer, number, with_range
from bar_jax.runtime.errors import InputError
from bar_jax.runtime.mesh import make_mesh
from bar_jax.sampling.draw import Models, sample_images
from bar_jax.sampling.kept import Given
from bar_jax.tokenizers import basis_inside, real_valued, sequence_grid, token_width
from bar_jax.training import restore


class Pipeline:
    """A trained tokenizer and generator.

        pipe = bar_jax.Pipeline.load("runs/quickstart")
        images = pipe.sample(labels=[3, 7], seed=0)    # uint8 [2, H, W, 3]
        tokens = pipe.encode(images)                   # bits uint8 or numbers float32 [2, N, k]
        images = pipe.decode(tokens)

    Attributes:
      config: of the workdir; its `sample` section holds the defaults of `sample`.
    """

    def __init__(
        self,
        config: ConfigDict,
        mesh: jax.sharding.Mesh,
        tokenizer: restore.Trained,
        generator: restore.Trained,
    ):
        """See `Pipeline.load`; `mesh` is where the parameters lie."""
        self.config = config
        self._mesh, self._tokenizer, self._generator = mesh, tokenizer, generator

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "Pipeline":
        """Loads the tokenizer and the generator trained in a workdir, onto one device.

        Raises:
          InputError: if the workdir holds no config or no trained model.
        """
        config, mesh = workdir.read_config(files.expand(folder)), _one_device()
        tokenizer = restore.load_tokenizer(config, mesh)
        return cls(config, mesh, tokenizer, restore.load_generator(config, mesh))

    @classmethod
    def from_published(
        cls,
        config: str | os.PathLike | ConfigDict,
        *,
        generator: str | os.PathLike,
        tokenizer: str | os.PathLike,
    ) -> "Pipeline":
        """Loads published weight files onto one device.

            pipe = bar_jax.Pipeline.from_published(
                "configs/masked_bit/bar_b.py",
                generator="bar_b.bin",
                tokenizer="bar_fsq_16bits_ft.bin",
            )

        Args:
          config: a config file, as `--config` takes it, or a config.
          generator, tokenizer: files, see `pretrained.files.read_tensors`.

        Raises:
          InputError: a file that cannot be read, or one of another model (the message says which).
        """
        if not isinstance(config, ConfigDict):
            config = load_config(os.fspath(config))
        config = config.copy_and_resolve_references()
        settle(config)
        validate(config)
        mesh = _one_device()
        paths = {"tokenizer": tokenizer, "generator": generator}
        tensors = {
            part: published.read(config, part, files.expand(path)) for part, path in paths.items()
        }
        return cls(
            config, mesh, *(published.load(config, part, tensors.pop(part), mesh) for part in paths)
        )

    def sample(
        self,
        labels: Sequence[int],
        *,
        seed: int = 0,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        unmasking_schedule: Sequence[int] | None = None,
        steps: int | None = None,
        tokens: int | None = None,
        images: np.ndarray | None = None,
        keep: np.ndarray | None = None,
    ) -> np.ndarray:
        """Draws an image for each label; image i depends on the seed, its label and i alone.

        Args:
          labels: B integers in 0..num_classes - 1.
          guidance_scale, temperature: None for those of `config.sample`.
          unmasking_schedule: of the masked-bit head; None for that of `config.sample`.
          steps: of real-valued tokens, each cell's (xAR) or the diffusion head's; None likewise.
          tokens: of basis tokens, how many of the first are written (0: all); None likewise.
          images: uint8 [B, H, W, 3], of which tokens are kept (inpainting).
          keep: bool [h, w] over the tokens' grid, or [B, h, w]: True where a token is kept.

        Returns:
          uint8 [B, H, W, 3].

        Raises:
          InputError: naming the argument that is wrong.
        """
        asked = {
            "guidance_scale": guidance_scale,
            "temperature": temperature,
            "tokens": tokens,
            "steps": steps,
            "unmasking_schedule": unmasking_schedule,
        }
        asked = {name: value for name, value in asked.items() if value is not None}
        config = self._asked_for(seed, asked)
        labels = _row("labels", labels)
        if not labels:
            raise InputError("labels", "none", "at least one class")
        check_labels(labels, config.data.num_classes)
        FIELDS["seed"].check("seed", config.seed)
        check_sampling(config)
        if asked.keys() & {"steps", "tokens"}:
            validate(config)
        given = self._check_given(images, keep, len(labels))
        # No more than was asked for, at the price of a compilation for each small number.
        config.sample.batch_size = min(config.sample.batch_size, len(labels))
        with jax.set_mesh(self._mesh):
            models = Models(self._generator, self._tokenizer)
            labels = np.asarray(labels, np.int32)
            return sample_images(config, self._mesh, models, labels, given)

    def _asked_for(self, seed: object, asked: dict[str, object]) -> ConfigDict:
        """The config, with arguments of `sample` in the place of the fields of that name."""
        config = self.config.copy_and_resolve_references()
        config.seed = integer("seed", seed)
        for name, value in asked.items():
            if name in ONLY_FOR and name not in sampling_fields(config):
                raise InputError(name, str(value), f"None: it is for {ONLY_FOR[name]}")
            config.sample[name] = READERS[name](name, value)
        return config

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Images uint8 [B, H, W, 3] -> tokens in raster order.

        Returns:
          Of bar_fsq, bits {0, 1} [B, N, k] uint8. Else what generators model, [B, N, d] float32: of
          kl_vae, the mean of each token's posterior times the scale.
        """
        tokenizer = self._tokenizer
        return np.asarray(
            codec.latents(tokenizer.module, tokenizer.params, self._check_images(images))
        )

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens as `encode` returns them -> images uint8 [B, H, W, 3].

        Of bits the first m tokens of each image may be given alone.
        """
        rows, columns = sequence_grid(self.config)
        length, channels = rows * columns, token_width(self.config)
        real = real_valued(self.config)
        numbers, count = ("numbers", f"{length}") if real else ("bits {0, 1}", f"1 to {length}")
        expected = f"{numbers} [B, {count}, {channels}]"
        tokens = array("tokens", tokens, expected)
        numeric = tokens.dtype.kind in "biuf"
        fits = np.abs(tokens) <= LARGEST if numeric and real else np.isin(tokens, (0, 1))
        shaped = tokens.ndim == 3 and tokens.shape[2] == channels
        least = length if real else 1
        if not (shaped and numeric and fits.all() and least <= tokens.shape[1] <= length):
            raise InputError("tokens", with_range(tokens), expected)
        tokenizer, tokens = self._tokenizer, tokens.astype(np.float32 if real else np.uint8)
        return np.asarray(codec.pixels(tokenizer.module, tokenizer.params, tokens))

    def _check_images(self, images: np.ndarray, batch: int | None = None) -> np.ndarray:
        size = self.config.data.image_size
        expected = f"uint8[{batch or 'B'}, {size}, {size}, 3]"
        images = array("images", images, expected)
        fits = images.shape[1:] == (size, size, 3) and batch in (None, len(images))
        if images.dtype != np.uint8 or not fits:
            raise InputError("images", described(images), expected)
        return images

    def _check_given(self, images: object, keep: object, batch: int) -> Given | None:
        """The images of which tokens are kept; None: none are."""
        if (images is None) != (keep is None):
            raise InputError("images, keep", "one of them", "both, or neither")
        if keep is None:
            return None
        if real_valued(self.config) or basis_inside(self.config):
            found = f"some, of {self.config.model.tokenizer.kind}"
            raise InputError("keep", found, "none: only bits are kept, of bar_fsq")
        images, grid = self._check_images(images, batch), token_grid(self.config)
        expected = f"bool{list(grid)} or bool{[batch, *grid]}"
        keep = array("keep", keep, expected)
        if keep.dtype != bool or keep.shape not in (grid, (batch, *grid)):
            raise InputError("keep", described(keep), expected)
        return Given(images, np.broadcast_to(keep, (batch, *grid)).reshape(batch, -1))


def _row(name: str, given: object) -> list:
    """A number or a row of numbers as a list of Python's; what they are is not looked at."""
    row = array(name, given, "a row of integers")
    if row.ndim > 1:
        raise InputError(name, described(row), "a row of integers")
    return np.ravel(row).tolist()


# How an argument of `Pipeline.sample` is read, and whose alone it is.
READERS = {
    "guidance_scale": number,
    "temperature": number,
    "tokens": integer,
    "steps": integer,
    "unmasking_schedule": lambda name, value: tuple(_row(name, value)),
}
ONLY_FOR = {"steps": "real-valued tokens", "unmasking_schedule": "the masked-bit head"}


def _one_device() -> jax.sharding.Mesh:
    return make_mesh(1, 1, 1, devices=jax.local_devices()[:1])
