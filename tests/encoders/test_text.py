from __future__ import annotations

import json
import re
from pathlib import Path

import jaxtyping
import pytest
import torch
import transformers as hf

from fusion_pl.encoders import TextEncoder
from fusion_pl.encoders.saved_files import is_allowed_file, remove_code_references
from fusion_pl.types import MissingFileError, UserError
from tests.encoders import contract
from tests.encoders.models import TEXTS, WORDS, save_text

TEXTS_OF_A_BATCH = ["the cat sat", "", "a very old dog ran fast on the blue mat", "sky"]
TOPS = (
    "encoder.final_layer_norm",
    "encoder.rel_embeddings",
    "encoder.LayerNorm",
    "encoder.conv",
    "encoder.relative_attention_bias",
    "final",
)


@pytest.fixture(scope="module", params=list(TEXTS))
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    save_text(request.param, path)
    return path


@pytest.fixture(scope="module")
def encoder(folder):
    made = TextEncoder(str(folder))
    made.load_pretrained()
    return made


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    path = tmp_path_factory.mktemp("bert")
    save_text("bert", path)
    return path


def test_shapes(encoder):
    contract.check_shapes(encoder, TEXTS_OF_A_BATCH)


def test_a_sample_does_not_depend_on_its_batch_and_padding(encoder):
    contract.check_batch_independence(encoder, TEXTS_OF_A_BATCH)


@pytest.mark.parametrize("head", ["tokens", "embedding"])
def test_every_parameter_has_a_gradient(encoder, head):
    contract.check_gradients(encoder, TEXTS_OF_A_BATCH, head)


def test_bfloat16(encoder):
    contract.check_bfloat16(encoder, TEXTS_OF_A_BATCH)


def test_processor_pickles(encoder):
    contract.check_processor_pickles(encoder, TEXTS_OF_A_BATCH)


def test_checkpoint_files(folder, tmp_path):
    contract.check_checkpoint_files(TextEncoder, folder, TEXTS_OF_A_BATCH, tmp_path)


def test_freeze_all(folder):
    contract.check_freeze_all(TextEncoder, folder, TEXTS_OF_A_BATCH)


def test_freeze_bottom(folder):
    contract.check_freeze_blocks(TextEncoder, folder, TEXTS_OF_A_BATCH, TOPS)


def test_invalid_hidden_layers_are_refused(folder):
    contract.check_hidden_layers_errors(TextEncoder, folder)


@pytest.mark.parametrize(
    ("folder", "combine"), contract.families_and_combinations(TEXTS, ["bert", "t5"]), indirect=["folder"]
)
def test_combined_hidden_layers(folder, combine):
    contract.check_combined_hidden_layers(TextEncoder, folder, TEXTS_OF_A_BATCH, combine)


def test_pyramid_of_sequences_is_refused(bert):
    with pytest.raises(
        UserError, match="are sequences, and a pyramid needs feature maps: choose concat, sum or attention"
    ):
        TextEncoder(str(bert), hidden_layers=[0, 1], combine="pyramid")


def test_tokens_are_those_of_the_saved_model(folder, encoder):
    model = hf.AutoModel.from_pretrained(folder).eval()
    model = getattr(model, "text_model", getattr(model, "encoder", model) if model.config.is_encoder_decoder else model)
    ids = torch.tensor([hf.AutoTokenizer.from_pretrained(folder)("a dog sat on the mat")["input_ids"]])
    with torch.no_grad():
        expected = model(input_ids=ids).last_hidden_state
    out = contract.encode(encoder, ["a dog sat on the mat"])
    torch.testing.assert_close(out.tokens, expected, rtol=1e-4, atol=1e-5)


def test_long_text_is_truncated_to_the_position_embedding(folder):
    long = " ".join(WORDS * 5)
    short = TextEncoder(str(folder), max_tokens=7)
    assert contract.encode(short, [long]).mask.sum() == 7
    most = TextEncoder(str(folder), max_tokens=10_000)
    out = contract.encode(most, [long])
    absolute = most.config.model_type not in {"t5", "deberta-v2", "modernbert"}
    assert out.mask.sum() == 40 if absolute else out.mask.sum() > 40
    assert out.tokens.isfinite().all()


def test_the_length_of_a_text_is_that_of_its_tokens(folder):
    short, long = (TextEncoder(str(folder), max_tokens=size).processor for size in (5, 20))
    for text in ("a dog sat on the mat", "the cat", ""):
        length = short.length(text)
        assert length[1:] == (5, "tokens")
        tokens = long([text])["attention_mask"].sum()  # at least one, also if the text is empty
        assert max(length.value, 1) == tokens
    assert short.length("a dog sat on the mat").value > 5


@pytest.mark.parametrize("pooling", ["mean", "max", "cls"])
def test_pooling(bert, pooling):
    encoder = TextEncoder(str(bert), pooling=pooling)
    out = contract.encode(encoder, TEXTS_OF_A_BATCH)
    for row in range(len(TEXTS_OF_A_BATCH)):
        real = out.tokens[row][out.mask[row]]
        expected = {"mean": real.mean(0), "max": real.max(0).values, "cls": real[0]}[pooling]
        torch.testing.assert_close(out.embedding[row], expected)


def test_weights_false_is_the_same_architecture_untrained(bert):
    trained, fresh = TextEncoder(str(bert)), TextEncoder(str(bert), weights=False)
    trained.load_pretrained()
    before = {key: value.clone() for key, value in fresh.state_dict().items()}
    fresh.load_pretrained()
    assert trained.pretrained_weights
    assert not fresh.pretrained_weights
    assert {k: v.shape for k, v in fresh.state_dict().items()} == {k: v.shape for k, v in trained.state_dict().items()}
    assert all(torch.equal(value, before[key]) for key, value in fresh.state_dict().items())
    key = "model.encoder.layer.0.output.dense.weight"
    assert not torch.equal(fresh.state_dict()[key], trained.state_dict()[key])


def test_missing_folder(tmp_path):
    with pytest.raises(MissingFileError, match=r"there is no folder .*nowhere: .*hf download NAME --local-dir"):
        TextEncoder(str(tmp_path / "nowhere"))


def test_folder_without_configuration(tmp_path):
    with pytest.raises(MissingFileError, match=r"contains no config\.json: .*hf download NAME --local-dir"):
        TextEncoder(str(tmp_path))


def test_folder_without_weights(bert, tmp_path):
    for file in bert.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    encoder = TextEncoder(str(tmp_path))  # an architecture needs none
    with pytest.raises(MissingFileError, match="no weights could be read from the folder"):
        encoder.load_pretrained()


def test_incomplete_weights(bert, tmp_path):
    hf.BertTokenizerFast.from_pretrained(bert).save_pretrained(tmp_path)
    model = hf.BertModel.from_pretrained(bert)
    state = {key: value for key, value in model.state_dict().items() if "layer.1." not in key}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(UserError, match=r"lack 16 of \d+ tensors of this bert \(first: encoder\.layer\.1\."):
        TextEncoder(str(tmp_path)).load_pretrained()


def test_hub_name_without_a_connection(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"run `hf download nobody/no-such-model --local-dir FOLDER`, then set"):
        TextEncoder("nobody/no-such-model")


def test_class_token_of_a_model_that_has_none(tmp_path):
    save_text("t5", tmp_path)
    with pytest.raises(UserError, match=r"pooling: .* has no class token: choose mean or max"):
        TextEncoder(str(tmp_path), pooling="cls")


def test_unknown_pooling(bert, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # a user's Python does not check annotations
    with pytest.raises(UserError, match=r"pooling: 'median' is unknown, expected mean, max or cls"):
        TextEncoder(str(bert), pooling="median")


def test_max_tokens_below_one(bert):
    with pytest.raises(UserError, match="max_tokens is 0, expected at least 1"):
        TextEncoder(str(bert), max_tokens=0)


def phobert(folder, **more):
    """Save a model whose tokenizer has no tokenizer.json."""
    config = hf.RobertaConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=64, pad_token_id=1
    )
    hf.RobertaModel(config).save_pretrained(folder)
    (folder / "words").write_text("".join(f"{word} {index}\n" for index, word in enumerate(["a", "cat", "c@@"], 4)))
    (folder / "merges").write_text("a t</w> 1\nc at</w> 1\n")
    tokenizer = hf.PhobertTokenizer(str(folder / "words"), str(folder / "merges"), **more)
    tokenizer.save_pretrained(folder)


def test_all_files_of_a_tokenizer_are_stored(tmp_path):
    phobert(tmp_path, chat_template="{{ messages }}")
    encoder = TextEncoder(str(tmp_path))
    files = encoder.files()
    assert {"vocab.txt", "bpe.codes", "tokenizer_config.json"} < set(files)
    inside = tmp_path / "inside"
    inside.mkdir()
    for name, content in files.items():
        (inside / name).write_bytes(content)
    again = TextEncoder.from_files({"pretrained": str(tmp_path)}, str(inside))
    texts = ["a cat", "cat a"]
    assert again.processor(texts)["input_ids"].tolist() == encoder.processor(texts)["input_ids"].tolist()


def test_a_tokenizer_that_cannot_be_stored_is_refused_before_training(tmp_path, monkeypatch):
    phobert(tmp_path)

    def save(self, folder, **_):
        (Path(folder) / "own.lexicon").write_text("cat")
        return ()

    monkeypatch.setattr(hf.PhobertTokenizer, "save_vocabulary", save)
    with pytest.raises(
        UserError, match=r"PhobertTokenizer needs the file own\.lexicon, which a checkpoint cannot store"
    ):
        TextEncoder(str(tmp_path))


def test_every_file_of_every_tokenizer_of_transformers_has_a_known_name():
    """Compared with the names in the installed version's own classes."""
    names = set()
    for path in Path(hf.__file__).parent.glob("models/*/tokenization_*.py"):
        text = path.read_text()
        for table in re.findall(r"(?:VOCAB_FILES_NAMES|vocab_files_names)\b[^=]*= *\{(.*?)\}", text, re.DOTALL):
            names |= set(re.findall(r""": *["']([^"'/]+\.[^"'/]+)["']""", table))
    assert {"vocab.txt", "bpe.codes", "source.spm"} < names
    assert {name for name in names if not is_allowed_file(name)} == set()


def test_vocabularies_are_stored_unchanged():
    content = b'{"auto_map": 0,   "chat_template": 1, "name_or_path": 2}'
    for name in ("vocab.json", "added_tokens.json", "tokenizer.json", "vocab-src.json"):
        assert remove_code_references(name, content) == content
    assert json.loads(remove_code_references("config.json", content)) == {}
