from __future__ import annotations

import pickle

import pytest
import torch
from PIL import Image

from fusion_pl.data.collate import Collate
from fusion_pl.data.rows import LoadError
from fusion_pl.types import Sample, UserError, Waveform
from tests.data.conftest import Length


def sound(level):
    return Waveform(torch.full((10,), level), 8000)


def test_processors_get_only_the_samples_with_their_input(processors):
    samples = [
        Sample("a", {"text": "xyz", "audio": sound(0.5)}, 2),
        Sample("b", {"audio": sound(0.25)}, 0, ("b was bad",)),
        Sample("c", {"text": ""}, 1, ("c was bad",)),
    ]
    batch = Collate(processors, training=True)(samples)
    assert batch.inputs["text"]["length"].tolist() == [3, 0]
    assert batch.inputs["audio"]["level"].tolist() == [0.5, 0.25]
    assert batch.inputs["audio"]["training"].all()
    assert {name: mask.tolist() for name, mask in batch.present.items()} == {
        "text": [True, False, True],
        "image": [False, False, False],
        "audio": [True, True, False],
    }
    assert batch.target.tolist() == [2, 0, 1]
    assert batch.target.dtype == torch.int64
    assert batch.ids == ["a", "b", "c"]
    assert batch.bad_files == [(), ("b was bad",), ("c was bad",)]


def test_an_input_that_no_sample_has_is_one_placeholder(processors):
    batch = Collate(processors)([Sample("a", {}), Sample("b", {})])
    assert [len(value) for name in processors for value in batch.inputs[name].values()] == [1, 1, 1, 1]
    assert not any(mask.any() for mask in batch.present.values())


def test_a_sample_with_a_target_and_without_inputs_is_refused(processors):
    samples = [Sample("a", {"text": "xyz"}, 2), Sample("empty-7", {"an input of nobody": 1}, 0)]
    with pytest.raises(LoadError, match=r"the sample 'empty-7' has none of the model's inputs \(text, image, audio\)"):
        Collate(processors)(samples)


def test_a_batch_with_an_unknown_target_has_no_targets(processors):
    picture = {"image": Image.new("L", (2, 2))}
    assert Collate(processors)([Sample("a", picture, 1), Sample("b", picture)]).target is None


def test_collate_works_in_a_worker(processors):
    collate = pickle.loads(pickle.dumps(Collate(processors, training=True)))
    assert collate([Sample("a", {"audio": sound(0.5)})]).inputs["audio"]["training"].tolist() == [True]


def test_errors_of_a_processor_name_input_and_samples():
    class Picky(Length):
        def __call__(self, values, training=False):
            raise UserError("too long")

    with pytest.raises(LoadError, match=r"input 'title' of the samples a, c: too long"):
        Collate({"title": Picky()})([Sample("a", {"title": "x"}), Sample("b", {}), Sample("c", {"title": "y"})])


def test_input_dropout_has_the_requested_rate_and_keeps_one_input(processors):
    picture = Image.new("L", (2, 2))
    both = [Sample(str(at), {"text": "x", "image": picture}) for at in range(2000)]
    torch.manual_seed(0)
    batch = Collate(processors, True, {"text": 0.5, "image": 0.2})(both)
    text, image = batch.present["text"], batch.present["image"]
    assert (text | image).all()
    # One of the two stays where both were drawn, with equal chances: 0.5 - 0.1 / 2, and 0.2 - 0.1 / 2.
    assert (~text).float().mean().item() == pytest.approx(0.45, abs=0.04)
    assert (~image).float().mean().item() == pytest.approx(0.15, abs=0.03)
    assert len(batch.inputs["text"]["length"]) == text.sum()  # nothing is computed for what was dropped
    alone = [Sample("a", {"text": "x"}), Sample("b", {})]
    assert Collate(processors, True, {"text": 0.99})(alone).present["text"].tolist() == [True, False]
    assert both[0].inputs.keys() == {"text", "image"}
