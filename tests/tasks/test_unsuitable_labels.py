"""Columns of labels that are no classes."""

from __future__ import annotations

import pytest

from fusion_pl.data import ManifestData
from fusion_pl.encoders import TinyText
from fusion_pl.types import UserError


@pytest.mark.parametrize(
    ("cells", "text"),
    [
        ([f"{row / 7:.3f}" for row in range(60)], "60 different values in 60 rows, like quantities: .*Ordinal"),
        ([f"name {row}" for row in range(60)], "60 different values in 60 rows, like ids or numbers: .*MultiLabel"),
    ],
)
def test_labels_that_are_no_classes_get_a_sentence_about_what_is_offered(cells, text, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "".join(f"text {row},{cell}\n" for row, cell in enumerate(cells)))
    data = ManifestData(str(path), num_workers=0)
    data.processors = {"text": TinyText(dim=16).processor}
    with pytest.raises(UserError, match=text):
        data.setup("fit")


def test_a_few_decimal_numbers_are_classes(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "".join(f"text {row},{row % 5 / 2}\n" for row in range(60)))
    data = ManifestData(str(path), num_workers=0)
    data.processors = {"text": TinyText(dim=16).processor}
    data.setup("fit")
    assert data.classes == ["0.0", "0.5", "1.0", "1.5", "2.0"]
