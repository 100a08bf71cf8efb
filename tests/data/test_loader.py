import multiprocessing
import os
import signal
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from bar_jax.data import eval_batches, folder, loader, train_batches
from bar_jax.data.images import DamagedImage
from bar_jax.runtime.errors import InputError


class Numbered:
    """Image i is 4x6, its red is i and its green the column; those in `damaged` are damaged."""

    num_classes = 256

    def __init__(self, size=20, damaged=()):
        self.size = size
        self.damaged = damaged

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if index in self.damaged:
            raise DamagedImage(f"image-{index}", "truncated")
        pixels = np.zeros((4, 6, 3), np.uint8)
        pixels[..., 0] = index
        pixels[..., 1] = np.arange(6)
        return {"image": Image.fromarray(pixels), "label": index, "name": f"image-{index}"}


SETTINGS = dict(image_size=4, crop="random", mirror=True, batch_size=8, seed=5)


def take(count, source=None, **changes):
    """The first batches as one array per name."""
    batches = train_batches(source or Numbered(), **SETTINGS | changes)
    taken = list(islice(batches, count))
    batches.close()
    return stacked(taken)


def stacked(batches):
    return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


@pytest.fixture
def warnings(monkeypatch):
    told = []
    monkeypatch.setattr(loader.logger, "warning", lambda text, *args: told.append(text % args))
    return told


# --- training ------------------------------------------------------------------------------------


def test_train_batches_have_the_promised_arrays():
    batch = next(
        train_batches(Numbered(), image_size=4, crop="adm", mirror=False, batch_size=8, seed=0)
    )
    assert {name: (array.dtype, array.shape) for name, array in batch.items()} == {
        "image": (np.uint8, (8, 4, 4, 3)),
        "label": (np.int32, (8,)),
    }


def test_labels_belong_to_their_images():
    batches = take(5)
    np.testing.assert_array_equal(batches["image"][..., 0, 0, 0], batches["label"])


def test_each_epoch_visits_every_image_once():
    labels = take(5)["label"].reshape(2, 20)  # 5 batches of 8 are 2 epochs of 20
    assert [sorted(epoch) for epoch in labels.tolist()] == [list(range(20))] * 2


def test_start_step_is_skipping():
    assert_same(take(3, start_step=4), {name: array[4:] for name, array in take(7).items()})


@pytest.mark.parametrize("shares", [[[0, 1, 2, 3], [4, 5, 6, 7]], [[0, 4], [1, 2], [3, 7], [5, 6]]])
def test_processes_make_up_the_same_global_batch(shares):
    """Whatever rows each of them has."""
    for rows in map(np.array, shares):
        part = take(4, rows=rows)
        for name, array in take(4).items():
            np.testing.assert_array_equal(part[name], array[:, rows], err_msg=name)


def test_workers_give_the_same_batches(tmp_path, warnings):
    """And go on after a signal that is the run's to act on."""
    (tmp_path / "class").mkdir()
    for i in range(20):
        Numbered()[i]["image"].save(tmp_path / "class" / f"{i:02}.png")
    (tmp_path / "class" / "07.png").write_bytes(b"damaged")
    settings = dict(source=folder(str(tmp_path)), start_step=2)
    batches = train_batches(**SETTINGS, num_workers=2, **settings)
    first = [next(batches), next(batches)]  # one of each worker
    for worker in multiprocessing.active_children():  # Ctrl-C and SIGTERM may reach them too
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(worker.pid, number)
    taken = [*first, *islice(batches, 8)]
    batches.close()
    assert_same(stacked(taken), take(10, **settings))


def test_augmentation_is_drawn_anew_in_every_epoch():
    batches = take(10)
    images, labels = batches["image"].reshape(80, -1), batches["label"].reshape(80)
    seen = {label: {image.tobytes() for image in images[labels == label]} for label in range(20)}
    assert sum(len(variants) > 1 for variants in seen.values()) > 15  # of 4 draws from 6 variants


def test_random_crops_and_mirrors_all_occur():
    greens = {tuple(row) for row in take(40)["image"][:, :, 0, :, 1].reshape(-1, 4).tolist()}
    crops = {(0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5)}
    assert greens == crops | {crop[::-1] for crop in crops}


def test_rows_columns_and_mirrors_are_independent(monkeypatch):
    """No two of them are drawn from the same numbers."""
    drawn, uniforms = [], loader.stream.uniforms

    def keep(places, seed, name):
        found = uniforms(places, seed, name)
        if len(places) == 300:  # threads of other tests may still be reading
            drawn.append(found)
        return found

    monkeypatch.setattr(loader.stream, "uniforms", keep)
    read = dict(image_size=4, crop="random", mirrored=True, seed=5, rows=(300, None))
    loader._read_training_images(0, source=Numbered(), **read)
    assert len(drawn) == 3
    assert np.max(np.abs(np.corrcoef(drawn) - np.eye(3))) < 0.2


def test_without_augmentation_an_image_is_always_the_same():
    greens = take(5, crop="center", mirror=False)["image"][..., 1]
    assert np.all(greens == [1, 2, 3, 4])


def test_another_seed_gives_another_order():
    assert not np.array_equal(take(2)["label"], take(2, seed=6)["label"])


def test_an_iterator_can_be_closed_early():
    batches = train_batches(
        Numbered(), image_size=4, crop="adm", mirror=False, batch_size=2, seed=0
    )
    next(batches)
    batches.close()
    assert next(batches, None) is None


# --- damaged images ------------------------------------------------------------------------------


def test_the_next_good_image_takes_the_place_of_a_damaged_one(warnings):
    damaged = take(5, Numbered(damaged=(7, 8)))["label"]
    good = take(5)["label"]
    np.testing.assert_array_equal(damaged, np.where((good == 7) | (good == 8), 9, good))


def test_the_last_image_is_replaced_by_the_first(warnings):
    assert 19 not in take(5, Numbered(damaged=(19,)))["label"]


def test_a_damaged_image_is_told_once(warnings):
    take(20, Numbered(damaged=(7,)))  # 8 epochs
    assert warnings == ["Skipped a damaged image: image-7 (truncated)"]


def test_a_damaged_image_is_refused_by_name():
    with pytest.raises(InputError, match="image-7: found a damaged image .truncated."):
        take(5, Numbered(damaged=(7,)), on_damaged="refuse")


def test_nothing_but_damaged_images_ends_the_run(warnings):
    with pytest.raises(InputError, match="data.path: found no readable image in 20 tries"):
        take(1, Numbered(damaged=range(20)))


def test_a_label_out_of_range_is_refused():
    source = Numbered()
    source.num_classes = 19
    with pytest.raises(InputError, match="label 19, expected 0 to 18"):
        take(5, source)


# --- evaluation ----------------------------------------------------------------------------------


def evaluate(source=None, **changes):
    settings = dict(image_size=4, crop="center", batch_size=8) | changes
    batches = list(eval_batches(source or Numbered(), **settings))
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def test_eval_is_in_order_and_padded():
    batches = evaluate()
    np.testing.assert_array_equal(batches["index"], [*range(20), -1, -1, -1, -1])
    np.testing.assert_array_equal(batches["label"], [*range(20), 0, 0, 0, 0])
    np.testing.assert_array_equal(batches["mask"], [True] * 20 + [False] * 4)
    np.testing.assert_array_equal(batches["image"][:, 0, 0, 0], batches["label"])


def test_eval_of_a_range():
    assert evaluate(start=3, stop=9, batch_size=4)["index"].tolist() == [*range(3, 9), -1, -1]


def test_eval_gives_mirror_images():
    batches = evaluate(mirrors=True)
    assert batches["image"][0, 0, :, 1].tolist() == [1, 2, 3, 4]
    assert batches["image_mirrored"][0, 0, :, 1].tolist() == [4, 3, 2, 1]


def test_eval_processes_make_up_the_same_batches():
    parts = [evaluate(rows=np.arange(4 * i, 4 * i + 4))["index"] for i in range(2)]
    np.testing.assert_array_equal(
        np.stack(parts).reshape(2, -1, 4).swapaxes(0, 1).ravel(), evaluate()["index"]
    )


def test_eval_masks_a_damaged_image(warnings):
    batches = evaluate(Numbered(damaged=(2,)))
    assert np.flatnonzero(~batches["mask"]).tolist() == [2, 20, 21, 22, 23]
    assert batches["index"][2] == 2
    assert warnings == ["Skipped a damaged image: image-2 (truncated)"]


def test_eval_refuses_a_damaged_image():
    with pytest.raises(InputError, match="image-2"):
        evaluate(Numbered(damaged=(2,)), on_damaged="refuse")


# --- mistakes, found before anything is read -----------------------------------------------------


@pytest.mark.parametrize(
    "changes, field",
    [
        (dict(crop="centre"), "data.crop"),
        (dict(on_damaged="ignore"), "data.on_damaged"),
        (dict(batch_size=0), "batch_size"),
        (dict(source=Numbered(size=0)), "data.source"),
    ],
)
def test_mistakes_are_told_at_the_call(changes, field):
    settings = dict(source=Numbered(), image_size=4, crop="adm", batch_size=8) | changes
    with pytest.raises(InputError, match=f"^{field}: "):
        train_batches(mirror=True, seed=0, **settings)


def test_eval_has_no_random_crop():
    with pytest.raises(InputError, match="data.crop"):
        eval_batches(Numbered(), image_size=4, crop="random", batch_size=8)
