"""The runs of a comparison and their configurations."""

from __future__ import annotations

import pytest

import fusion_pl.fusion
from fusion_pl.analysis.plan import parse_heads, parse_input_sets, plan_runs, read_base_config
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
    runs = plan_runs(BASE, "all", "each,all", seeds=2)
    count = len(fusion_pl.fusion.__all__) - 1
    assert len(runs) == 2 * (count + 3)
    assert len({run.name for run in runs}) == len({run.key for run in runs}) == len(runs)
    alone = [run for run in runs if len(run.inputs) == 1]
    assert {run.class_path for run in alone} == {"fusion_pl.fusion.Concat"}
    assert {run.inputs for run in alone} == {("text",), ("image",), ("audio",)}
    assert [run.seed for run in runs] == [0] * (count + 3) + [1] * (count + 3)  # all runs of seed 0 first


def test_a_run_on_fewer_inputs_has_only_their_options():
    (run,) = [one for one in plan_runs(BASE, "LowRank", "each", seeds=1) if one.inputs == ("text",)]
    assert list(run.config["model"]["encoders"]) == ["text"]
    args = run.config["data"]["init_args"]
    assert args["inputs"] == {"text": "body"}
    assert args["augment"] == {}
    assert args["drop_empty"] is True
    assert "drop_empty" not in BASE["data"]["init_args"]


def test_transforms_of_several_inputs_need_all_of_them():
    augment = {"image+text": "both", "image": "one", "image+audio": "other"}
    base = BASE | {"data": BASE["data"] | {"init_args": BASE["data"]["init_args"] | {"augment": augment}}}
    found = {
        one.inputs: set(one.config["data"]["init_args"]["augment"])
        for one in plan_runs(base, "LowRank", "subsets", seeds=1)
    }
    assert found[("image",)] == {"image"}
    assert found[("text", "image")] == {"image", "image+text"}
    assert found[("text", "audio")] == set()
    assert found[("text", "image", "audio")] == set(augment)


def test_arguments_of_the_configured_head_are_not_passed_to_others():
    fusions = {run.class_path: run.config["model"]["fusion"] for run in plan_runs(BASE, "LowRank,Mean", "all", seeds=1)}
    assert fusions["fusion_pl.fusion.LowRank"]["init_args"] == {"rank": 7}
    assert fusions["fusion_pl.fusion.Mean"] == {"class_path": "fusion_pl.fusion.Mean"}


def test_the_key_depends_on_configuration_and_arguments():
    (first,) = plan_runs(BASE, "Mean", "all", seeds=1)
    (same,) = plan_runs(BASE, "Mean", "all", seeds=1)
    (longer,) = plan_runs(BASE, "Mean", "all", seeds=1, extra=["--trainer.max_epochs", "9"])
    (changed,) = plan_runs(BASE | {"data": {"class_path": "fusion_pl.data.Ask"}}, "Mean", "all", seeds=1)
    assert first.key == same.key
    assert len({first.key, longer.key, changed.key}) == 3


def test_input_sets():
    assert parse_input_sets("each,all", "ab") == [("a", "b"), ("a",), ("b",)]
    assert parse_input_sets("subsets", "abc")[0] == ("a", "b", "c")
    assert len(parse_input_sets("subsets", "abc")) == 7
    assert parse_input_sets("each,all", "a") == [("a",)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: parse_heads("Concat,Maen"), "--fusions: there is no head 'Maen'; did you mean Mean?"),
        (lambda: parse_heads(","), "--fusions is empty"),
        (lambda: parse_input_sets("some", "ab"), "--inputs: 'some' is unknown, expected each, all or subsets"),
    ],
)
def test_invalid_values_of_options_are_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_invalid_configurations_are_refused(tmp_path):
    with pytest.raises(MissingFileError, match=r"there is no configuration nowhere\.yaml"):
        read_base_config("nowhere.yaml")
    for content, message in (
        ("a: [", "is not YAML"),
        ("model: {}", r"has no model\.encoders or no data"),
        ("1", "has no"),
        ("model: null\ndata: x", "has no"),
        ("model: {encoders: {}}\ndata: x", "has no"),
    ):
        (tmp_path / "c.yaml").write_text(content)
        with pytest.raises(UserError, match=message):
            read_base_config(str(tmp_path / "c.yaml"))


def test_data_may_be_a_class_path(tmp_path):
    (tmp_path / "c.yaml").write_text("model: {encoders: {text: a.T, image: a.I}}\ndata: fusion_pl.data.Keypad")
    one = plan_runs(read_base_config(str(tmp_path / "c.yaml")), "Mean", "each", seeds=1)[0]
    assert one.config["data"] == {"class_path": "fusion_pl.data.Keypad", "init_args": {"drop_empty": True}}


def test_classes_of_the_same_name_have_different_folders():
    assert len({run.name for run in plan_runs(BASE, "Mean,mine.Mean,theirs.Mean", "all", seeds=1)}) == 3


def test_the_configured_head_may_be_a_class_name_or_a_class_path():
    for written in ("LowRank", "fusion_pl.fusion.LowRank"):
        base = {**BASE, "model": {**BASE["model"], "fusion": {"class_path": written, "init_args": {"rank": 7}}}}
        (run,) = plan_runs({**base, "data": {"class_path": "D", "init_args": None}}, "LowRank", "all", seeds=1)
        assert run.config["model"]["fusion"] == {"class_path": "fusion_pl.fusion.LowRank", "init_args": {"rank": 7}}
