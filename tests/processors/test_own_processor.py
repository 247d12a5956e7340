"""A user's own processor, which opens a kind of file that the package does not know."""

from __future__ import annotations

import csv
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from fusion_pl.data import ManifestData
from fusion_pl.encoders import Encoder
from fusion_pl.fusion import Mean
from fusion_pl.module import FusionClassifier
from fusion_pl.predict import Predictor
from fusion_pl.processors import Processor
from fusion_pl.types import Encoded, UserError
from tests.test_module import quiet_trainer


class ArrayFile(Processor):
    """Opens NumPy files, and takes arrays."""

    reads_files = True

    def open(self, value, training=False):
        return value if isinstance(value, np.ndarray) else np.load(value)

    def placeholder(self):
        return np.zeros(3, "float32")

    def __call__(self, values, training=False):
        return {"vectors": torch.from_numpy(np.stack(values))}


class VectorEncoder(Encoder):
    """One token per vector."""

    def __init__(self) -> None:
        super().__init__()
        self.dim, self.processor = 4, ArrayFile()
        self.projection = nn.Linear(3, 4)

    def forward(self, vectors):
        embedding = self.projection(vectors)
        return Encoded(embedding.unsqueeze(1), torch.ones(len(vectors), 1, dtype=torch.bool), embedding)


@pytest.fixture
def manifest(tmp_path):
    rows = []
    for index in range(12):
        np.save(tmp_path / f"{index}.npy", np.full(3, index % 2, "float32"))
        rows.append([f"{index}.npy" if index else "", "ab"[index % 2], ("train", "val")[index > 7]])
    rows[0][0] = "1.npy"
    rows[9][0] = ""
    with open(tmp_path / "table.csv", "w", newline="") as file:
        csv.writer(file).writerows([["vector", "label", "split"], *rows])
    return tmp_path / "table.csv"


def read_data(manifest, **options):
    return ManifestData(str(manifest), num_workers=0, batch_size=5, drop_empty=True, **options)


def test_it_opens_the_files_of_a_table_and_values_in_memory(manifest, tmp_path):
    torch.manual_seed(0)
    model = FusionClassifier({"vector": VectorEncoder()}, Mean, ["a", "b"], partial(torch.optim.SGD, lr=0.5))
    data = read_data(manifest)
    data.processors = model.processors
    trainer = quiet_trainer(tmp_path, max_epochs=20)
    trainer.fit(model, datamodule=data)
    assert trainer.callback_metrics["val/accuracy"] == 1
    predictor = Predictor(model, device="cpu")
    by_path, by_value = predictor.predict([{"vector": tmp_path / "1.npy"}, {"vector": np.ones(3, "float32")}])
    assert by_path.label == by_value.label == "b"
    refused = predictor.predict({"vector": str(tmp_path / "1.npy")}, open_paths=False)
    assert refused.error == "the input 'vector' may not be a path here: pass the content of the file as bytes"
    assert predictor.predict({"vector": np.ones(3, "float32")}, open_paths=False).label == "b"


def test_its_files_are_checked_like_any_others(manifest):
    (manifest.parent / "3.npy").unlink()
    data = read_data(manifest)
    data.processors = {"vector": ArrayFile()}
    with pytest.raises(UserError, match=r"row 5, column 'vector': the file '3.npy' does not exist"):
        data.setup("fit")


@pytest.mark.parametrize("content", [b"", b"not an array"])
def test_an_error_of_its_library_has_row_and_column(manifest, content):
    (manifest.parent / "3.npy").write_bytes(content)
    for on_bad_file in ("raise", "missing"):
        data = read_data(manifest, on_bad_file=on_bad_file)
        data.processors = {"vector": ArrayFile()}
        data.setup("fit")
        with pytest.raises(UserError, match=r"table.csv, row 5, column 'vector': "):
            data.samples("train")[3]


def test_a_processor_that_cannot_open_its_input_is_refused():
    encoder = VectorEncoder()
    encoder.processor = lambda values, training=False: {}
    with pytest.raises(UserError, match=r"processor of 'vector', function, cannot open its input: derive the class"):
        FusionClassifier({"vector": encoder}, Mean, ["a", "b"])
