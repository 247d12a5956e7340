from __future__ import annotations

import pytest

import fusion_pl.fusion
from fusion_pl.analysis.plan import heads, input_sets, plan, read_base
from fusion_pl.types import MissingFileError, UserError

BASE = {
    "model": {
        "encoders": {"text": {"class_path": "T"}, "image": {"class_path": "I"}, "audio": {"class_path": "A"}},
        "fusion": {"class_path": "fusion_pl.fusion.LowRank", "init_args": {"rank": 7}},
    },
    "data": {
        "class_path": "fusion_pl.data.ManifestData",
        "init_args": {"manifest": "m.csv", "inputs": {"text": "body", "image": "photo"}, "augment": {"audio": "a"}},
    },
}


def test_all_heads_on_all_inputs_and_the_baseline_on_each():
    trials = plan(BASE, "all", "each,all", seeds=2)
    count = len(fusion_pl.fusion.__all__) - 1
    assert len(trials) == 2 * (count + 3)
    assert len({trial.name for trial in trials}) == len({trial.key for trial in trials}) == len(trials)
    alone = [trial for trial in trials if len(trial.inputs) == 1]
    assert {trial.fusion for trial in alone} == {"fusion_pl.fusion.Concat"}
    assert {trial.inputs for trial in alone} == {("text",), ("image",), ("audio",)}
    assert [trial.seed for trial in trials] == [0] * (count + 3) + [1] * (count + 3)  # a whole comparison, then another


def test_a_run_with_fewer_inputs_keeps_only_their_options():
    (trial,) = [one for one in plan(BASE, "LowRank", "each", seeds=1) if one.inputs == ("text",)]
    assert list(trial.config["model"]["encoders"]) == ["text"]
    args = trial.config["data"]["init_args"]
    assert args["inputs"] == {"text": "body"}
    assert args["augment"] == {}
    assert args["drop_empty"] is True
    assert "drop_empty" not in BASE["data"]["init_args"]


def test_a_heads_own_arguments_stay_with_it():
    fusions = {trial.fusion: trial.config["model"]["fusion"] for trial in plan(BASE, "LowRank,Mean", "all", seeds=1)}
    assert fusions["fusion_pl.fusion.LowRank"]["init_args"] == {"rank": 7}
    assert fusions["fusion_pl.fusion.Mean"] == {"class_path": "fusion_pl.fusion.Mean"}


def test_the_key_changes_with_what_decides_the_outcome():
    (first,) = plan(BASE, "Mean", "all", seeds=1)
    (same,) = plan(BASE, "Mean", "all", seeds=1)
    (longer,) = plan(BASE, "Mean", "all", seeds=1, extra=["--trainer.max_epochs", "9"])
    (changed,) = plan(BASE | {"data": {"class_path": "fusion_pl.data.Ask"}}, "Mean", "all", seeds=1)
    assert first.key == same.key
    assert len({first.key, longer.key, changed.key}) == 3


def test_sets_of_inputs():
    assert input_sets("each,all", "ab") == [("a", "b"), ("a",), ("b",)]
    assert input_sets("subsets", "abc")[0] == ("a", "b", "c")
    assert len(input_sets("subsets", "abc")) == 7
    assert input_sets("each,all", "a") == [("a",)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: heads("Concat,Maen"), "--fusions: there is no head 'Maen'; did you mean Mean?"),
        (lambda: heads(","), "--fusions names no head"),
        (lambda: input_sets("some", "ab"), "--inputs: 'some' is none of each, all, subsets"),
    ],
)
def test_a_slip_is_one_sentence(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_a_base_that_is_none(tmp_path):
    with pytest.raises(MissingFileError, match=r"there is no configuration nowhere\.yaml"):
        read_base("nowhere.yaml")
    for content, message in (
        ("a: [", "is not YAML"),
        ("model: {}", r"has no model\.encoders or no data"),
        ("1", "has no"),
        ("model: null\ndata: x", "has no"),
        ("model: {encoders: {}}\ndata: x", "has no"),
    ):
        (tmp_path / "c.yaml").write_text(content)
        with pytest.raises(UserError, match=message):
            read_base(str(tmp_path / "c.yaml"))


def test_data_may_be_a_class_path_alone(tmp_path):
    (tmp_path / "c.yaml").write_text("model: {encoders: {text: a.T, image: a.I}}\ndata: fusion_pl.data.Keypad")
    one = plan(read_base(str(tmp_path / "c.yaml")), "Mean", "each", seeds=1)[0]
    assert one.config["data"] == {"class_path": "fusion_pl.data.Keypad", "init_args": {"drop_empty": True}}


def test_two_classes_of_one_name_have_folders_of_their_own():
    assert len({trial.name for trial in plan(BASE, "Mean,mine.Mean,theirs.Mean", "all", seeds=1)}) == 3


def test_a_heads_own_arguments_stay_with_it_however_its_class_is_written():
    for written in ("LowRank", "fusion_pl.fusion.LowRank"):
        base = {**BASE, "model": {**BASE["model"], "fusion": {"class_path": written, "init_args": {"rank": 7}}}}
        (trial,) = plan({**base, "data": {"class_path": "D", "init_args": None}}, "LowRank", "all", seeds=1)
        assert trial.config["model"]["fusion"] == {"class_path": "fusion_pl.fusion.LowRank", "init_args": {"rank": 7}}
