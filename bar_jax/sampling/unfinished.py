"""Sets of images that are being drawn: what there is of them survives the process."""

import hashlib
import io
import json
import logging
import os
import pathlib
import shutil
import zipfile

import jax
import numpy as np
from ml_collections import ConfigDict

from bar_jax.runtime import mesh as mesh_lib
from bar_jax.runtime import workdir
from bar_jax.runtime.files import naming, replacing, write_atomically

logger = logging.getLogger(__name__)


class Unfinished:
    """Images of a set that is being drawn, in a file that survives the process.

    Only process 0 keeps them; all know how many there are. The folder is named by the settings, so
    that sets that were begun with others are left alone.

    Attributes:
      count: of images that are kept.
      images: on process 0, uint8 [N, H, W, 3] mapped from the file, once there are some.
    """

    def __init__(self, config: ConfigDict, settings: dict[str, object], total: int):
        """Opens what is there of a set of `total` images."""
        identity = json.dumps(settings, sort_keys=True)
        digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
        self._folder = pathlib.Path(config.workdir) / f"samples.partial-{digest}"
        self._total, self.images, found = total, None, 0
        if jax.process_index() == 0 and (self._folder / "count.json").exists():
            try:
                self.images = np.lib.format.open_memmap(self._folder / "images.npy", "r+")
                found = workdir.read_json(self._folder / "count.json")["images"]
            except (OSError, ValueError) as error:
                logger.warning("sample: %s is damaged (%s); drawn anew", self._folder, error)
        self.count = mesh_lib.broadcast_from_first(lambda: found)
        if self.count:
            logger.info("sample: goes on after %d images of %s", self.count, self._folder)

    def append(self, images: np.ndarray) -> None:
        """Keeps the next images, uint8 [b, H, W, 3]; those past the end fill up a batch."""
        images = images[: self._total - self.count]
        if jax.process_index() == 0:
            path = self._folder / "images.npy"
            if self.images is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                shape = (self._total, *images.shape[1:])
                self.images = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
            # Written, not assigned: on a full disk a mapped file ends the process without a word.
            with naming(path), path.open("rb+") as file:
                file.seek(self.images.offset + self.count * self.images[0].nbytes)
                file.write(images.tobytes())
                file.flush()
                os.fsync(file.fileno())
            count = json.dumps({"images": self.count + len(images)})
            write_atomically(self._folder / "count.json", count.encode())
        self.count += len(images)

    def finish(self, path: pathlib.Path, labels: np.ndarray, settings: dict[str, object]) -> None:
        """Writes the .npz; what was there before is kept under a number."""
        if path.exists():
            number = 1
            while (older := path.with_name(f"{path.stem}.{number}.npz")).exists():
                number += 1
            logger.info("sample: what was there before is kept as %s", older)
            path.rename(older)
        with replacing(path) as temporary:
            with zipfile.ZipFile(temporary, "w") as file:  # as np.savez, but images stay on disk
                file.write(self._folder / "images.npy", "arr_0.npy")
                for name, array in (("arr_1", labels), ("settings", json.dumps(settings))):
                    buffer = io.BytesIO()
                    np.save(buffer, array)
                    file.writestr(f"{name}.npy", buffer.getvalue())
        self.images = None
        shutil.rmtree(self._folder)
