"""Outputs of frozen encoders are computed once, and read from the cache afterwards."""

from __future__ import annotations

import importlib
import json
import sys
import textwrap

import numpy as np
import pytest
import torch
from PIL import Image

from fusion_pl.data import ManifestData
from fusion_pl.encoders import AudioEncoder, Encoder, ImageEncoder, TextEncoder, TinyAudio, TinyText
from fusion_pl.encoders.base import is_frozen
from fusion_pl.fusion import Concat
from fusion_pl.module import FusionClassifier
from fusion_pl.training import cache as module
from fusion_pl.training import cache_keys
from fusion_pl.training.cache import DiskBudget, EncodedCache, folder_bytes
from fusion_pl.types import Encoded, Waveform

from ..conftest import CLASSES
from ..encoders.models import save_audio, save_image, save_text


def tone(seconds):
    return Waveform(torch.randn(round(16_000 * seconds), generator=torch.Generator().manual_seed(1)), 16_000)


def picture(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8))


VALUES = {
    "bert": ["the cat sat", "", "a very old dog ran fast on the blue mat"],
    "roberta": ["the cat sat", "", "a very old dog ran fast on the blue mat"],  # pads with a token that is not 0
    "vit": [picture(0), picture(1), Image.new("RGB", (32, 32))],
    "wav2vec2-layer": [tone(0.3), tone(1.0), tone(0.1)],
    "ast": [tone(0.3), tone(1.0), tone(0.1)],
}


def frozen(name, folder):
    torch.manual_seed(0)
    texts, images = dict.fromkeys(("bert", "roberta"), (save_text, TextEncoder)), {"vit": (save_image, ImageEncoder)}
    save, kind = (texts | images).get(name, (save_audio, AudioEncoder))
    save(name, folder)
    encoder = kind(str(folder), freeze="all")
    encoder.load_pretrained()
    return encoder  # as it was built: in training, but for its frozen parts


@pytest.fixture
def calls(monkeypatch):
    """Count the rows that encoders compute."""
    counted = []

    def watch(encoder):
        encoder.register_forward_hook(lambda part, args, out: counted.append(len(out.tokens)))
        return counted

    return watch


@pytest.mark.parametrize("name", VALUES)
def test_rows_are_computed_once_in_any_batch(name, tmp_path, calls):
    encoder, values = frozen(name, tmp_path / "model"), VALUES[name]
    counted = calls(encoder)
    cached = EncodedCache(encoder, tmp_path / "cache")
    for batch in (values, values[:1], values[::-1], [values[2], values[0]]):
        inputs = encoder.processor(batch)
        found, wanted = cached(inputs), encoder(**inputs)
        counted.pop()  # of what is wanted
        assert torch.equal(found.mask, wanted.mask[:, : found.mask.shape[1]])
        assert not wanted.mask[:, found.mask.shape[1] :].any()
        torch.testing.assert_close(found.tokens, wanted.tokens[:, : found.mask.shape[1]], rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(found.embedding, wanted.embedding, rtol=1e-4, atol=2e-5)
    assert counted == [len(values)]


def test_other_weights_or_arguments_have_another_folder(tmp_path):
    encoder = frozen("bert", tmp_path / "model")
    folders = {EncodedCache(encoder, tmp_path).folder}
    assert EncodedCache(encoder, tmp_path).folder in folders
    with torch.no_grad():
        next(encoder.parameters()).view(-1)[0] += 1e-3
    folders.add(EncodedCache(encoder, tmp_path).folder)
    folders.add(EncodedCache(TextEncoder(str(tmp_path / "model"), freeze="all", pooling="max"), tmp_path).folder)
    assert len(folders) == 3


def test_other_settings_in_the_models_files_have_another_folder(tmp_path):
    """Settings that are neither weights nor arguments, but change the output."""
    before = EncodedCache(frozen("vit", tmp_path / "model"), tmp_path).folder
    for name, key, value in (
        ("preprocessor_config.json", "image_mean", [0.1, 0.2, 0.3]),
        ("config.json", "hidden_act", "relu"),
    ):
        path = tmp_path / "model" / name
        original = path.read_text()
        path.write_text(json.dumps(json.loads(original) | {key: value}))
        torch.manual_seed(0)
        changed = ImageEncoder(str(tmp_path / "model"), freeze="all")
        changed.load_pretrained()
        assert EncodedCache(changed, tmp_path).folder != before, name
        path.write_text(original)


SOURCES = {
    "shop/base.py": """
        from fusion_pl.encoders import Encoder, TinyText
        from .parts.scale import scaled
        from shop import amounts

        class Base(Encoder):
            def __init__(self):
                super().__init__()
                self.dim, self.processor = 8, TinyText(dim=8).processor
                self.embed = __import__("torch").nn.Embedding(257, 8).requires_grad_(False)

            def rows(self, ids):
                return scaled(self.embed(ids)) + amounts.SHIFT
        """,
    "shop/parts/scale.py": """
        def scaled(value):
            return value * 2
        """,
    "shop/amounts.py": "SHIFT = 1.0",
    "shop/own.py": """
        from fusion_pl.types import Encoded
        from shop.base import Base

        class Own(Base):
            def forward(self, ids, mask):
                tokens = self.rows(ids) * mask.unsqueeze(-1)
                return Encoded(tokens, mask, tokens.sum(1))
        """,
    "shop/unused.py": "THIS = 1",
}


@pytest.mark.parametrize(
    ("source", "old", "new"),
    [
        ("shop/base.py", "amounts.SHIFT", "3 * amounts.SHIFT"),
        ("shop/parts/scale.py", "2", "5"),
        ("shop/amounts.py", "1.0", "7.0"),
        ("shop/unused.py", "1", "2"),
    ],
)
def test_edited_code_is_run_again(tmp_path, monkeypatch, source, old, new):
    """Code of the encoder's class, its base classes and their imports, in packages of any kind."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def encoded(**content):
        for path, code in (SOURCES | content).items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(textwrap.dedent(code))
        for name in [name for name in sys.modules if name.partition(".")[0] == "shop"]:
            monkeypatch.delitem(sys.modules, name)  # as in another process
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        importlib.invalidate_caches()
        cache_keys._hash_module.cache_clear()
        torch.manual_seed(0)
        encoder = importlib.import_module("shop.own").Own()
        inputs = encoder.processor(["the cat"])
        cached = EncodedCache(encoder, tmp_path / "cache")
        assert torch.equal(cached(inputs).embedding, encoder(**inputs).embedding)
        return cached.folder

    first = encoded()
    assert encoded() == first
    assert (encoded(**{source: SOURCES[source].replace(old, new)}) == first) == (source == "shop/unused.py")


class Transposed(Encoder):
    """A user's frozen encoder with non-contiguous tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.dim, self.processor = 3, ImageEncoder
        self.scale = torch.nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, pixels):
        tokens = (pixels * self.scale).flatten(2).transpose(1, 2)
        return Encoded(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool), tokens.mean(1))


def test_tokens_may_be_non_contiguous(tmp_path):
    pixels = {"pixels": torch.rand(2, 3, 4, 4)}
    cached = EncodedCache(Transposed(), tmp_path)
    for _ in range(2):
        assert torch.equal(cached(pixels).tokens, Transposed()(**pixels).tokens)
    assert len(list(tmp_path.rglob("*.row"))) == 2


def test_the_last_gib_of_a_disk_stays_free(tmp_path, monkeypatch, caplog):
    encoder = frozen("bert", tmp_path / "model")
    monkeypatch.setattr(module, "RESERVED_BYTES", 2**80)
    assert EncodedCache(encoder, tmp_path / "cache")(encoder.processor(["the cat"])).tokens.isfinite().all()
    assert not list((tmp_path / "cache").rglob("*.row"))
    assert "less than 1 GiB is left on the disk" in caplog.text


@pytest.mark.parametrize("kind", ["pretrained", "tiny"])
def test_a_long_clip_has_a_fixed_crop_when_it_is_cached(tmp_path, kind):
    pretrained = kind == "pretrained"
    encoder = frozen("wav2vec2-layer", tmp_path / "model") if pretrained else TinyAudio().requires_grad_(False)
    encoder.processor.max_samples = encoder.processor.rate // 2
    model = FusionClassifier({"audio": encoder}, Concat, CLASSES)
    clip, key = [tone(3.0)], "values" if pretrained else "samples"
    assert len({encoder.processor(clip, training=True)[key].sum().item() for _ in range(4)}) > 1
    model.enable_cache(tmp_path / "cache", augmented_inputs=())
    found = {encoder.processor(clip, training=training)[key].sum().item() for training in (True, True, False)}
    assert len(found) == 1


def test_a_damaged_row_is_computed_and_written_again(tmp_path, calls):
    encoder = frozen("bert", tmp_path / "model")
    counted = calls(encoder)
    inputs = encoder.processor(["the cat"])
    first = EncodedCache(encoder, tmp_path / "cache")(inputs)
    (path,) = (tmp_path / "cache").rglob("*.row")
    complete = path.read_bytes()
    path.write_bytes(complete[:50])
    again = EncodedCache(encoder, tmp_path / "cache")(inputs)
    assert torch.equal(again.tokens, first.tokens)
    assert counted == [1, 1]
    assert path.read_bytes() == complete


def test_a_flipped_byte_never_changes_a_value(tmp_path):
    """In the values, the header or the checksum of a row."""
    cached, inputs = EncodedCache(Transposed(), tmp_path), {"pixels": torch.rand(2, 3, 4, 4)}
    first = cached(inputs)
    paths = sorted(tmp_path.rglob("*.row"))
    contents = [path.read_bytes() for path in paths]
    random = np.random.default_rng(0)
    for position in random.integers(0, len(contents[0]), 300).tolist():
        which = int(random.integers(2))
        damaged = bytearray(contents[which])
        damaged[position] ^= int(random.integers(1, 256))
        paths[which].write_bytes(damaged)
        found = cached(inputs)
        assert torch.equal(found.tokens, first.tokens)
        assert torch.equal(found.mask, first.mask)
        assert torch.equal(found.embedding, first.embedding)
        assert paths[which].read_bytes() == contents[which]  # written anew
    paths[0].write_bytes(contents[1])  # another row's
    assert torch.equal(cached(inputs).tokens, first.tokens)


def test_a_full_disk_does_not_stop_the_run(tmp_path, monkeypatch, caplog, calls):
    encoder = frozen("bert", tmp_path / "model")
    counted = calls(encoder)

    def full(row):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save", full)
    cached = EncodedCache(encoder, tmp_path / "cache")
    for _ in range(3):
        assert cached(encoder.processor(["the cat"])).tokens.isfinite().all()
    assert counted == [1, 1, 1]
    assert [record.getMessage().count("No space left") for record in caplog.records] == [1]
    assert not list((tmp_path / "cache").rglob("*.partial"))


def test_only_frozen_encoders_are_cached(tmp_path, manifest):
    image = frozen("vit", tmp_path / "model")
    assert is_frozen(image)
    assert not is_frozen(TinyText())
    assert not is_frozen(ImageEncoder(str(tmp_path / "model"), freeze=1))
    assert is_frozen(ImageEncoder(str(tmp_path / "model"), freeze="all", hidden_layers=[0, 1], combine="sum"))
    model = FusionClassifier({"text": TinyText(dim=8), "image": image}, Concat, CLASSES)
    data = ManifestData(str(manifest), batch_size=8, num_workers=0)
    data.processors = model.processors
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    plain = model.eval()(batch).logits
    model.enable_cache(tmp_path / "cache", augmented_inputs=())
    for _ in range(2):
        torch.testing.assert_close(model(batch).logits, plain, rtol=1e-4, atol=2e-5)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    num_rows = len(list((tmp_path / "cache").rglob("*.row")))
    assert num_rows == int(batch.present["image"].sum())
    model.train().enable_cache(tmp_path / "cache", augmented_inputs={"image"})
    batch.inputs["image"]["pixel_values"] //= 2
    model(batch)
    assert len(list((tmp_path / "cache").rglob("*.row"))) == num_rows


def test_a_folder_does_not_exceed_its_limit(tmp_path, caplog, calls):
    """Two processes share it; other rows are computed each time, and cached rows stay the same."""
    encoder, folder = frozen("bert", tmp_path / "model"), tmp_path / "cache"
    inputs = encoder.processor([f"the {word} sat" for word in ("cat", "dog", "mat", "old", "ran", "fast")])
    EncodedCache(encoder, tmp_path / "unlimited")(inputs)
    one = folder_bytes(tmp_path / "unlimited") // 6
    limit = 4 * one + one // 2
    counted = calls(encoder)
    ours, theirs = (EncodedCache(encoder, folder, DiskBudget(folder, limit)) for _ in range(2))
    ours({name: value[:2] for name, value in inputs.items()})
    found = theirs(inputs)
    assert folder_bytes(folder) == 4 * one
    assert "is full" in caplog.text
    assert "--cache_limit" in caplog.text
    assert sum(counted) == 2 + 4
    again = EncodedCache(encoder, folder, DiskBudget(folder, limit))(inputs)
    assert sum(counted) == 2 + 4 + 2  # those that are there are read
    assert torch.allclose(found.tokens, again.tokens, atol=1e-5)  # computed in other batches
