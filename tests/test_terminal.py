"""Output of a run in a terminal of 80 columns."""

from __future__ import annotations

import re

from tests.terminal import Terminal
from tests.test_stops import fit  # noqa: F401 - a fixture

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def test_results_are_printed_after_the_bar_is_removed(fit):  # noqa: F811
    folder = "a folder with a name that needs more than one line of eighty columns, and with [red] and [/b] in it"
    with Terminal([*fit, "--trainer.max_epochs", "2", "--trainer.logger.save_dir", folder], columns=80) as terminal:
        assert terminal.ended() == 0, terminal.text
    live, _, results = terminal.text.rpartition("fit: 24 train, 12 val samples")
    assert "Epoch 1/1" in live
    assert ESCAPES.sub("", live).endswith("\n")  # the bar's line has ended
    assert not ESCAPES.sub("", results).count("Epoch"), "the bar comes back after the results"
    assert "\x1b[1A" not in results
    lines = ESCAPES.sub("", results).splitlines()
    assert lines[-2:] == [
        f"results: {folder}/version_0/metrics.json",
        f"checkpoint: {folder}/version_0/checkpoints/best.ckpt",
    ]
    shown = ESCAPES.sub("", live)
    for nothing in ("missing_embeddings", "layer_weights", "FLOPs", "No positive samples", "weights_only"):
        assert nothing not in shown
    table = [line.split() for line in shown.splitlines() if re.match(r"(text|image|fusion|all) ", line)]
    assert sorted(row[0] for row in table) == ["all", "fusion", "image", "text"]
    bars = [line for line in re.split(r"[\r\n]", shown) if line.startswith(("Epoch 1/1", "Validation"))]
    assert bars
    assert not any("val/loss" in line for line in shown.splitlines() if not line.startswith("Epoch"))  # in one line
