"""What is measured, in order of worth: a row for each process.

A row's `seconds` are an estimate for one H200 with nothing compiled before: a sampler of BAR-B
takes 25 to 35 s to compile there, B/4's 17 s, a decoder 3 to 5 s.
"""

from typing import NamedTuple

RIGHT = "right"  # in the place of a config: the checks of `right.py`


class Row(NamedTuple):
    """A row of the table.

    Attributes:
      name: as `--only` knows it.
      config: a file of configs/, or RIGHT.
      parts: of `benchmark.parts`; of RIGHT the names of checks.
      seconds: what it takes, see above.
      batches: sizes to measure, of a device, in this order.
      first_that_fits: end with the first of them that fits.
      fields: other fields of the config.
      memory: GB of a device without which it cannot work.
      beside: published numbers of the same.
      trace: whether to say where the time goes.
      platform: the only one that it is for; "": it is for all.
    """

    name: str
    config: str
    parts: tuple[str, ...]
    seconds: int
    batches: tuple[int, ...] = ()
    first_that_fits: bool = True
    fields: dict[str, object] = {}
    memory: float = 0.0
    beside: str = ""
    trace: bool = False
    platform: str = ""


# Beside what `config.presets.tiny` sets: less to compile, and the same for rows that differ in a
# size or the dtype alone, see `kinds`.
TINY = {
    **{
        f"model.{part}.depth": 1 for part in ("generator", "tokenizer.encoder", "tokenizer.decoder")
    },
    **{"model.generator.dropout": 0.0, "model.generator.attention_dropout": 0.0},
    **dict.fromkeys(("dtype", "sample.dtype", "encode.dtype"), "float32"),
}
LARGE, SMALL = (256, 128, 64, 32, 16), (1, 16)
# Samplers are float32 by themselves.
BFLOAT16 = {"sample.dtype": "bfloat16", "encode.dtype": "bfloat16"}
REMAT = {"train_generator.remat": True}
PAPER = "images/s, masked-bit paper, Table 4, one H200, float32"
TABLE_1 = "s an image, basis paper, Table 1"
# Time and memory of a step in Table 9 of the basis paper, relative to the host network's.
TABLE_9 = "time 1.00, 1.01, memory 1.00, 1.03 times the host's, basis paper, Table 9, one A100"


def _sampler(name, seconds, memory, beside, **options) -> Row:
    """Tokens and pixels of a published model, at the largest batch that fits."""
    folder = "basis" if name.startswith(("xar", "mar")) else "masked_bit"
    options = {"batches": LARGE, "fields": BFLOAT16} | options
    config = f"configs/{folder}/{options.pop('file', name)}.py"
    suffix = options.pop("suffix", "")
    parts = ("sampling",)
    return Row(name + suffix, config, parts, seconds, memory=memory, beside=beside, **options)


def _training(name, file, seconds, memory, batches, remat=False) -> Row:
    fields = REMAT if remat else {}
    config = f"configs/{file}.py"
    return Row(name, config, ("training",), seconds, batches, fields=fields, memory=memory)


_BAR_B, _BAR_B_2, _BAR_B_4, _BAR_L = (
    f"{number} {PAPER}" for number in ("24.33", "150.52", "445.48", "10.65")
)
_float32 = dict(fields={}, suffix="_float32")
_small = dict(batches=SMALL, first_that_fits=False, suffix="_small")
_small_float32 = _small | dict(fields={}, suffix="_small_float32")
_all = dict(batches=(256, *SMALL), first_that_fits=False)

ROWS = (
    Row(RIGHT, RIGHT, ("loss", "tokens", "tokenizer", "xar", "mar", "training"), 90),
    Row("right_low", RIGHT, ("attention", "cache", "low_precision", "layouts", "checkpoint"), 50),
    _sampler("bar_b", 55, 4, _BAR_B),
    _sampler("bar_b", 60, 6, _BAR_B, **_float32),
    _training("train_bar_b", "masked_bit/bar_b", 50, 8, LARGE),
    _sampler("bar_b_4", 35, 4, _BAR_B_4),
    _sampler("bar_l", 60, 8, _BAR_L),
    _sampler("xar_b", 35, 4, f"0.08 {TABLE_1} (xAR-B on a basis)"),
    _sampler("bar_b", 25, 4, "", trace=True, suffix="_trace"),
    *(
        _sampler(
            *("bar_b", 45, 4, ""),
            fields=BFLOAT16 | {"sample.attention": kind},
            suffix=f"_{kind}",
            platform="" if kind == "xla" else "gpu",
        )
        for kind in ("xla", "cudnn", "pallas")  # beside `bar_b`, which takes what is thought best
    ),
    _training("train_bar_b_trace", "masked_bit/bar_b", 35, 8, LARGE)._replace(trace=True),
    _training("train_bar_b_remat", "masked_bit/bar_b", 50, 8, (512, *LARGE), remat=True),
    _training("train_bar_l", "masked_bit/bar_l", 70, 20, (128, 64, 32, 16, 8)),
    _training("train_bar_l_remat", "masked_bit/bar_l", 70, 20, (*LARGE, 8), remat=True),
    _training("train_xar_b", "basis/xar_b", 45, 6, LARGE),
    _sampler("bar_b", 75, 4, _BAR_B, **_small),
    _sampler("bar_b_2", 100, 4, _BAR_B_2, **_all),
    Row("basis", "configs/basis/xar_b.py", ("basis",), 100, (64, 32, 16), memory=8, beside=TABLE_9),
    _sampler("xar_l", 50, 6, f"0.27 {TABLE_1} (xAR-L on a basis)"),
    _sampler("xar_h", 60, 8, f"0.68 {TABLE_1} (xAR-H on a basis, and xAR-H)"),
    Row(
        "codec", "configs/masked_bit/bar_b.py", ("tokenizer",), 30, LARGE, fields=BFLOAT16, memory=6
    ),
    Row("features", "configs/masked_bit/bar_b.py", ("features",), 30, (256, 64), memory=2),
    Row("input", "configs/folder.py", ("input",), 15, (256,)),
    Row(
        "train_tokenizer",
        "configs/tokenizer/bar_fsq.py",
        ("tokenizer_training",),
        150,
        (64, 32, 16, 8),
        memory=16,
    ),
    # The paper's 28.24 s are of the model of 943 M parameters, MAR-H, in 64 iterations.
    _sampler("mar_b", 90, 4, f"28.24 {TABLE_1} (MAR-H)", file="mar_b_host"),
    _sampler("mar_l", 100, 6, f"28.24 {TABLE_1} (MAR-H)", file="mar_l_host"),
    _sampler("bar_b_4", 45, 4, _BAR_B_4, **_small),
    _sampler("bar_l", 90, 8, _BAR_L, **_small),
    _sampler("bar_b", 80, 6, _BAR_B, **_small_float32),
    *(
        _sampler(
            "bar_b",
            *(80, 6, ""),
            batches=SMALL,
            first_that_fits=False,
            fields={"sample.weights": kind},
            suffix=f"_small_{kind}_weights",
        )
        for kind in ("bfloat16", "int8")  # beside `bar_b_small_float32`
    ),
    _sampler("bar_b_2", 100, 6, _BAR_B_2, **_all, **_float32),
    _sampler("bar_b_4", 80, 6, _BAR_B_4, **_all, **_float32),
    _sampler("bar_l", 180, 10, _BAR_L, **_all, **_float32),
)


def kinds() -> list[Row]:
    """The rows without those that differ from one before in a size or the dtype alone.

    Sizes are the model's of its family (all of BAR, of xAR, of MAR) and the batch.
    """
    found = {}
    for row in ROWS:
        family = row.config.split("/")[-1].split("_")[0].removesuffix(".py")
        fields = {name: value for name, value in row.fields.items() if not name.endswith("dtype")}
        found.setdefault((family, row.parts, str(fields), row.trace), row)
    return list(found.values())


def arguments(row: Row, out: str, tiny: bool, devices: int = 1) -> list[str]:
    """The row's arguments of `bar_jax.main`.

    Args:
      out: folder for a trace, and with the images that `input` reads.
      tiny: the smallest model of the kind, and a batch of two.
      devices: each has a batch of the row's size, all of them together so many.
    """
    batches = [devices * size for size in ((2,) if tiny else row.batches)]
    fields = {
        "job": "benchmark",
        "benchmark.parts": ",".join(row.parts),
        "benchmark.batches": ",".join(map(str, batches)),
        "benchmark.first_that_fits": row.first_that_fits,
        "benchmark.repeats": 1 if tiny or row.trace else 2,
        **row.fields,
        **(TINY if tiny else {}),
    }
    if row.trace:
        fields["benchmark.trace"] = f"{out}/traces/{row.name}"
    if "input" in row.parts:
        fields |= {"data.source": "folder", "data.path": f"{out}/images", "data.num_classes": 2}
    size = ":tiny" if tiny else ""
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    return [f"--config={row.config}{size}", *flags]
