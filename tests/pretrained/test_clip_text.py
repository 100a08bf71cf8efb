"""Tests of bar_jax/pretrained/clip_text.py, most with a made-up vocabulary of CLIP's size.

Where the package open_clip_torch is installed (`pip install --no-deps open_clip_torch`), its files
are read too; known ids of CLIP are compared.
"""

import gzip
import importlib.machinery
import importlib.util
import itertools
import re
import string
import sys

import numpy as np
import pytest

from bar_jax.pretrained import clip_text
from bar_jax.pretrained.clip_text import CONTEXT, END, MERGES, START, class_names, tokenize
from bar_jax.runtime.errors import InputError

NAMED = pytest.mark.skipif(
    importlib.util.find_spec("open_clip") is None, reason="open_clip_torch is not installed"
)
TEXTS = [
    "a photo of a great white shark",
    "It's 2026, we'll see: don't!!! (what?)",
    "  Café\n\tNAÏVE &amp; e\u0301cole  ",
    "日本 語 😀 x² ½",
    "snake_case-and/so on...",
    "",
]


def merges():
    """All pairs of letters, then all triples and as many words of four as there is place for."""
    a = string.ascii_lowercase
    ends = [*a, *(f"{letter}</w>" for letter in a)]
    pairs = itertools.product(a, ends)
    triples = itertools.product(map("".join, itertools.product(a, repeat=2)), ends)
    fours = itertools.product(map("".join, itertools.product(a, repeat=3)), a)
    return list(itertools.islice(itertools.chain(pairs, triples, fours), MERGES))


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """In the form of Hugging Face's file."""
    pytest.importorskip("tokenizers")
    path = tmp_path_factory.mktemp("clip") / "merges.txt"
    path.write_text("\n".join(["#version: 0.2", *map(" ".join, merges()), ""]))
    return path


def symbols():
    """The character that stands for each byte, in the order of CLIP's ids."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return dict(zip([*printable, *others], map(chr, [*printable, *range(256, 324)]), strict=True))


def word_ids():
    single = [*symbols().values()]
    words = [*single, *(f"{symbol}</w>" for symbol in single), *map("".join, merges())]
    return {word: i for i, word in enumerate(words)}


def naive_tokens(text):
    """The ids of a clean text by the definition: the pair of the lowest rank first."""
    symbol, ids = symbols(), word_ids()
    ranks = {pair: rank for rank, pair in enumerate(merges())}
    found = []
    # Python knows no classes of letters and of numbers: these do for the texts above.
    for word in re.findall(r"'s|'t|'ll|[^\W\d_½²]+|[\d½²]|(?:[^\w\s]|_)+", text):
        parts = [symbol[byte] for byte in word.encode()]
        parts[-1] += "</w>"
        while len(parts) > 1:
            rank, i = min(
                (ranks.get(p, MERGES), i) for i, p in enumerate(itertools.pairwise(parts))
            )
            if rank == MERGES:
                break
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        found += [ids[part] for part in parts]
    return found


def test_ids_are_those_of_the_definition(vocabulary):
    clean = [
        "a photo of a great white shark",
        "it's 2026, we'll see: don't!!! (what?)",
        "café naïve & école",
        "日本 語 😀 x² ½",
        "snake_case-and/so on...",
        "",
    ]
    tokens = tokenize(TEXTS, vocabulary)
    assert tokens.shape == (len(TEXTS), CONTEXT) and tokens.dtype == np.int32
    for row, text in zip(tokens, clean, strict=True):
        wanted = [START, *naive_tokens(text), END]
        np.testing.assert_array_equal(row, wanted + [0] * (CONTEXT - len(wanted)), err_msg=text)


def test_ids_are_those_of_hugging_face(vocabulary):
    """Words and punctuation; what is cleaned differs a little."""
    transformers = pytest.importorskip("transformers")
    ids = {**word_ids(), "<|startoftext|>": START, "<|endoftext|>": END}
    tokenizer = transformers.CLIPTokenizer(vocab=ids, merges=merges())
    texts = [TEXTS[0], TEXTS[1], TEXTS[4]]
    for row, wanted in zip(tokenize(texts, vocabulary), tokenizer(texts)["input_ids"], strict=True):
        np.testing.assert_array_equal(row[: len(wanted)], wanted)


def test_too_long_a_text_is_cut_and_keeps_its_end(vocabulary):
    short, long = tokenize(["? " * 75, "? " * 76], vocabulary)
    np.testing.assert_array_equal(short, long)
    assert (short[0], short[-1]) == (START, END) and len(set(short[1:-1])) == 1


def test_openai_s_file_is_packed_and_has_more_merges(vocabulary, tmp_path):
    path = tmp_path / "bpe_simple_vocab_16e6.txt.gz"
    path.write_bytes(gzip.compress(vocabulary.read_bytes() + b"zzzz zz\n" * 10))
    np.testing.assert_array_equal(tokenize(TEXTS, path), tokenize(TEXTS, vocabulary))


@pytest.mark.parametrize(
    "content, found",
    [
        (None, "no such file"),
        (b"", "a file of other lines"),
        (b"#version: 0.2\na b\n", "a file of other lines"),
        (b"#version: 0.2\n" + b"abc\n" * MERGES, "a file of other lines"),
        (b"\xff\xfe", "an unreadable file"),
    ],
)
def test_a_file_that_is_no_vocabulary(tmp_path, content, found):
    path = tmp_path / "merges.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=f"merges.txt: found {found}"):
        tokenize(["a"], path)


def test_without_the_package_tokenizers(vocabulary, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(InputError, match=r'pip install "bar_jax\[text\]"'):
        tokenize(["a"], vocabulary)


def test_a_damaged_archive(tmp_path):
    path = tmp_path / "vocabulary.txt.gz"
    path.write_bytes(gzip.compress(b"#version")[:-5])
    with pytest.raises(InputError, match="an unreadable file"):
        tokenize(["a"], path)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Stands in for the installed package: writes its list of names, says it is there."""

    def write(content):
        (tmp_path / "zero_shot_metadata.py").write_text(content)
        spec = importlib.machinery.ModuleSpec("open_clip", None, is_package=True)
        spec.submodule_search_locations.append(str(tmp_path))
        monkeypatch.setattr(clip_text.importlib.util, "find_spec", lambda name: spec)

    return write


def test_names_of_the_package_are_read_and_nothing_is_run(package):
    names = tuple(f"class {i}" for i in range(1000))
    package(f"raise SystemExit\nOTHER = lambda c: c\nIMAGENET_CLASSNAMES = {names!r}\n")
    assert class_names("open_clip") == list(names)


@pytest.mark.parametrize(
    "content, found",
    [
        ("OTHER = 1", "no list of names"),
        ("IMAGENET_CLASSNAMES = open('x')", "no list of names"),
        ("IMAGENET_CLASSNAMES = (", "no list of names"),
        ("IMAGENET_CLASSNAMES = ('a', 'b')", "2 entries"),
    ],
)
def test_a_package_without_names(package, content, found):
    package(content)
    with pytest.raises(InputError, match=f"zero_shot_metadata.py: found {found}"):
        class_names("open_clip")


def test_no_package(monkeypatch):
    monkeypatch.setattr(clip_text.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install --no-deps open_clip_torch"):
        class_names("open_clip")


def test_names_of_a_file(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("zero\none \n")
    assert class_names(path) == ["zero", "one"]


@pytest.mark.parametrize("content", ["", "zero\n\none\n"])
def test_a_file_without_names(tmp_path, content):
    path = tmp_path / "names.txt"
    path.write_text(content)
    with pytest.raises(InputError, match="the name of a class in each line"):
        class_names(path)


@NAMED
def test_known_ids_of_clip():
    (tokens,) = tokenize(["a photo of a cat"], "open_clip")
    np.testing.assert_array_equal(tokens[:8], [START, 320, 1125, 539, 320, 2368, END, 0])


@NAMED
def test_imagenet_s_names():
    names = class_names("open_clip")
    assert (names[0], names[207], names[999]) == ("tench", "Golden Retriever", "toilet paper")
