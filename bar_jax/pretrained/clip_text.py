"""CLIP's texts: the names of classes, and texts as tokens.

The vocabulary and ImageNet's class names are read from files, also from those of the PyPI package
`open_clip_torch`; none of its code is run.
"""

import ast
import gzip
import html
import importlib.util
import os
import unicodedata
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bar_jax.runtime.errors import InputError

PACKAGE = "open_clip"
CONTEXT = 77  # tokens of a text, the start and the end among them
MERGES = 48894  # that CLIP uses, of the many more in OpenAI's file
SYMBOLS = 256  # one for each byte; another 256 stand for those that end a word
START = 2 * SYMBOLS + MERGES
END = START + 1
# Contractions, words, single digits, and runs of whatever else there is.
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


def tokenize(texts: Sequence[str], vocabulary: str | os.PathLike) -> np.ndarray:
    """Texts -> token ids [B, 77] int32 as CLIP's own tokenizer gives them.

    Start, tokens, end, then zeros; of too long a text the last tokens give way to the end. HTML's
    entities are resolved, and accents and white space brought to one form; CLIP's own also mends
    mis-decoded texts (the package ftfy).

    Args:
      vocabulary: `bpe_simple_vocab_16e6.txt.gz`, Hugging Face's `merges.txt`, or `open_clip`: the
        file in the installed package.

    Raises:
      InputError: no such file or package, a file without CLIP's merges, or the package
        `tokenizers` is not installed.
    """
    if str(vocabulary) == PACKAGE:
        vocabulary = _package_file("bpe_simple_vocab_16e6.txt.gz")
    merges = _read_merges(Path(vocabulary))
    try:
        from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    except ImportError as error:
        expected = 'the package tokenizers: pip install "bar_jax[text]"'
        raise InputError(vocabulary, "nothing to read it with", expected) from error
    # Sorted, they are in the order of CLIP's ids.
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *map("".join, merges)]
    ids = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(ids, merges, end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokens = np.zeros((len(texts), CONTEXT), np.int32)
    for row, text in zip(tokens, texts, strict=True):
        found = [START, *tokenizer.encode(_clean(text)).ids[: CONTEXT - 2], END]
        row[: len(found)] = found
    return tokens


def class_names(source: str | os.PathLike) -> list[str]:
    """Names of classes in the order of the labels.

    Args:
      source: `open_clip`, for ImageNet's 1000 names in the installed package, which CLIP was
        measured with; or a text file with a name in each line.

    Raises:
      InputError: no such file or package, or there are no names in it.
    """
    if str(source) != PACKAGE:
        path = Path(source)
        names = [line.strip() for line in _read_text(path).splitlines()]
        if not names or not all(names):
            raise InputError(path, "an empty file or line", "the name of a class in each line")
        return names
    path = _package_file("zero_shot_metadata.py")
    try:
        assigned = {
            target.id: statement.value
            for statement in ast.parse(_read_text(path)).body
            if isinstance(statement, ast.Assign)
            for target in statement.targets
            if isinstance(target, ast.Name)
        }
        names = ast.literal_eval(assigned["IMAGENET_CLASSNAMES"])
    except (KeyError, SyntaxError, ValueError) as error:
        raise InputError(path, f"no list of names ({error})", "IMAGENET_CLASSNAMES") from error
    if len(names) != 1000 or not all(isinstance(name, str) for name in names):
        raise InputError(path, f"{len(names)} entries", "1000 names of classes")
    return list(names)


def _clean(text: str) -> str:
    text = unicodedata.normalize("NFC", html.unescape(html.unescape(text)))
    return " ".join(text.split()).lower()


def _read_merges(path: Path) -> list[tuple[str, str]]:
    """The pairs that CLIP merges, the first ones first."""
    header, *lines = _read_text(path).splitlines()[: MERGES + 1] or [""]
    merges = [tuple(line.split(" ")) for line in lines]
    if "#version" not in header or len(merges) < MERGES or any(len(pair) != 2 for pair in merges):
        expected = f"a line with #version, then {MERGES} lines with a pair to merge"
        raise InputError(path, "a file of other lines", expected)
    return merges


def _read_text(path: Path) -> str:
    """A text file, packed with gzip or not."""
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    except FileNotFoundError as error:
        raise InputError(path, "no such file", f"a text file, or {PACKAGE}") from error
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(path, f"an unreadable file ({error})", "a text file") from error


def _package_file(name: str) -> Path:
    # find_spec finds a package without importing it.
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        expected = "it installed: pip install --no-deps open_clip_torch"
        raise InputError(PACKAGE, "no such package", expected)
    return Path(spec.submodule_search_locations[0]) / name
