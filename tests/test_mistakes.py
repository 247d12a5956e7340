"""Every wrong option on the command line is reported in one sentence that names it."""

from __future__ import annotations

import csv
import inspect
import os
import sys
from argparse import ArgumentParser as PlainParser
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import Callback

from fusion_pl.analysis.arguments import compare_parser
from fusion_pl.cli.fusion_cli import FusionCLI
from fusion_pl.cli.options import all_options, options_of
from fusion_pl.cli.parsing import parse
from fusion_pl.cli.run import command_parser, run
from fusion_pl.data import FusionData, Keypad, ManifestData
from fusion_pl.encoders import Encoder
from fusion_pl.explain.command import explain_parser
from fusion_pl.fusion import Fusion
from fusion_pl.prediction.options import predict_parser
from fusion_pl.serve.command import serve_parser
from fusion_pl.types import UserError

NOT_A_VALUE = "no-such/value"  # not a number, bool, choice, list, dictionary or class
PARSERS = {}
UNREADABLE = Path("/proc/sys/vm/compact_memory")  # write-only
SPLITS = ("train", "train", "val", "test")
DIMS = {"dims": {"text": 8, "image": 8}, "num_classes": 2}
# Options that may be negative, or that a library accepts and ignores.
ANY_NUMBER = {
    "trainer.max_epochs", "trainer.max_steps",  # -1: unlimited
    "trainer.num_sanity_val_steps", "checkpoint.save_top_k",  # -1: all
    "trainer.logger.version", "trainer.logger.max_queue", "trainer.logger.flush_secs",  # TensorBoard's own
    "early_stopping.min_delta", "early_stopping.stopping_threshold", "early_stopping.divergence_threshold",
}  # fmt: skip


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    rows = [
        {
            "id": f"s{i}",
            "text": f"number {i}",
            "label": "ab"[i % 2],
            "split": ("train", "train", "val", "test")[i // 10],
        }
        for i in range(40)
    ]
    with (folder / "m.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder / "m.csv"


@pytest.fixture
def config(table, tmp_path, monkeypatch):
    """A configuration of one input in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fusion-pl"])
    content = {
        "model": {
            "encoders": {"text": {"class_path": "fusion_pl.encoders.TinyText", "init_args": {"dim": 8}}},
            "fusion": {"class_path": "fusion_pl.fusion.Weighted", "init_args": {"dim": 16}},
        },
        "data": {
            "class_path": "fusion_pl.data.ManifestData",
            "init_args": {"manifest": str(table), "batch_size": 5, "num_workers": 0},
        },
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    return "config.yaml"


@pytest.fixture
def without_training(monkeypatch):
    """Stop where training would start; one parser serves all commands."""
    monkeypatch.setattr(FusionCLI, "_run_subcommand", lambda self, subcommand: None)
    setup = FusionCLI.setup_parser

    def shared(self, *given):
        if not PARSERS:
            setup(self, *given)
            PARSERS.update({name: getattr(self, name) for name in ("parser", "_subcommand_parsers")})
            PARSERS["_subcommand_method_arguments"] = self._subcommand_method_arguments
        vars(self).update(PARSERS)

    monkeypatch.setattr(FusionCLI, "setup_parser", shared)


def error_of(subcommand, arguments, capsys):
    """Return the one sentence that a refused command prints."""
    capsys.readouterr()
    assert run(subcommand, arguments) == 2, f"{subcommand} {arguments} was accepted"
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fusion-pl: error: ")]
    assert len(lines) == 1
    return lines[0].removeprefix("fusion-pl: error: ")


def union_members(hint):
    """Return the types of a union."""
    inner = get_args(hint) if get_origin(hint) not in (dict, list, tuple, Literal) else ()
    return [part for one in inner for part in union_members(one)] if inner else [hint]


def parse_error(parser, arguments):
    try:
        parse(parser, arguments)
    except UserError as error:
        return str(error)
    return None


def test_every_option_refuses_another_type():
    """Also the options of every class that an option names; those that take any text are left out."""
    covered, wrong, small = set(), [], {}
    for parser in (
        command_parser("fit"),
        command_parser("validate"),
        command_parser("test"),
        predict_parser(),
        explain_parser(),
        serve_parser(),
    ):
        own = options_of(parser).values()
        for option, cls in all_options(parser):
            takes_any = any(part is str or "Untyped" in str(part) for part in union_members(option.type))
            if takes_any or option.type is None or (option.key, cls) in covered:
                continue
            covered.add((option.key, cls))
            key = option.key.replace("NAME", "title")
            arguments = [f"--{key}", NOT_A_VALUE]
            owner = option if cls is None else next(one for one in own if key.startswith(f"{one.key}.") and one.bases)
            if owner.key not in small:  # a parser of this option alone is as strict, and twenty times as fast
                small[owner.key] = ArgumentParser(exit_on_error=False)
                small[owner.key].add_argument(f"--{owner.key}", type=owner.type)
            if cls is not None:
                named = f"{owner.key}.title" if "NAME" in option.key else owner.key
                arguments = [f"--{named}", f"{cls.__module__}.{cls.__qualname__}", *arguments]
            message = parse_error(small[owner.key], arguments)
            if (
                message is None
                or "\n" in message
                or len(message) > 420
                or key not in message
                or NOT_A_VALUE not in message
            ):
                wrong.append(f"{arguments}: {message}")
    assert not wrong, "\n".join(wrong)
    assert {
        ("data.batch_size", ManifestData), ("data.batch_size", Keypad), ("trainer.max_epochs", None),
        ("model.loss.label_smoothing", next(cls for key, cls in covered if key == "model.loss.label_smoothing")),
    } <= covered  # fmt: skip
    assert {cls for _, cls in covered if cls and issubclass(cls, Fusion)} >= {one for one in Fusion.__subclasses__()
            if one.__module__.startswith("fusion_pl.") and len(inspect.signature(one).parameters) > 2
            and not inspect.isabstract(one)}  # fmt: skip


def test_every_number_out_of_its_range_is_refused(config, without_training, capsys):
    """-1 for every number that cannot be negative; heads and encoders are constructed directly."""
    wrong, covered = [], 0
    for option, cls in all_options(command_parser("fit")):
        name = option.key.rpartition(".")[2]
        numeric = any(part in (int, float) for part in union_members(option.type)) or option.key == "threads"
        if not numeric or option.key in ANY_NUMBER or (cls and issubclass(cls, Callback)):
            continue
        covered += 1
        if cls and issubclass(cls, (Encoder, Fusion)):
            if "pretrained" in inspect.signature(cls).parameters:
                continue  # building one takes a model; tests/encoders has their arguments
            required = {"dims": {"text": 8, "image": 8}, "num_classes": 2, "features": 3}
            given = {key: value for key, value in required.items() if key in inspect.signature(cls).parameters}
            given[name] = -1 if int in union_members(option.type) else -1.0
            try:
                cls(**given)
                wrong.append(f"{cls.__name__}({name}=-1) was accepted")
            except ValueError as error:
                if name not in str(error):
                    wrong.append(f"{cls.__name__}({name}=-1): {error}")
            continue
        if cls and issubclass(cls, FusionData) and cls is not ManifestData:
            continue  # the same options; the demo data would be written for each
        told = error_of("fit", ["--config", config, f"--{option.key}", "-1"], capsys)
        if name not in told:
            wrong.append(f"--{option.key} -1: {told}")
    assert not wrong, "\n".join(wrong)
    assert covered > 100


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ("--data.batch_size 0", "batch_size must be 1 or more, got 0"),
        ("--data.val_fraction 2", "val_fraction must lie in"),
        ("--data.num_workers -1", "num_workers must be 0 or more"),
        ("--data.input_dropout {text:~1.5}", "input_dropout of text is 1.5, expected a probability below 1"),
        ("--model.loss.label_smoothing 2", "label_smoothing must be at least 0 and below 1, not 2.0"),
        ("--model.optimizer.init_args.lr -1", "AdamW(lr=-1.0): Invalid learning rate: -1.0"),
        ("--model.lr_scheduler.warmup 2", "warmup is 2.0, expected a share"),
        ("--trainer.logger.save_dir afile", "--trainer.logger.save_dir: afile is a file, expected a folder"),
        ("--cache afile/below", "--cache: afile is a file, expected a folder"),
        ("--model.optimizer.lr fast", "model.optimizer.lr is fast, expected a number"),
        ("--data.classes cat dog", "data.classes is cat, expected a list such as '[a, b]' or null"),
        ("--data.classes a b", "data.classes is a, expected a list such as '[a, b]' or null"),
        ("--model.fusion Concta", "there is no class 'Concta'; did you mean Concat?"),
        ("--model.fusion fusion_pl.fusion.Concta", "there is no class 'fusion_pl.fusion.Concta'; did you mean Concat?"),
        ("--model.fusion TinyText", "model.fusion: there is no class 'TinyText'"),
        ("--model.fusion fusion_pl.encoders.TinyText", "fusion_pl.encoders.TinyText is not a Fusion"),
        (
            "--model.lr_scheduler ReduceLROnPlateau",
            "model.lr_scheduler: several classes are called ReduceLROnPlateau: "
            "give the class path of one of them, torch.optim.lr_scheduler.ReduceLROnPlateau, lightning.",
        ),
        ("--trainer.callbacks Timer", "which config.yaml cannot contain: set that option to text (for Timer"),
        ("--trainer.callbacks+ Timer", "which config.yaml cannot contain: set that option to text (for Timer"),
        ("--model.fusion.dimm 3", "no option 'dimm' for model.fusion; did you mean dim?"),
        ("--model.encoders.text TinyTxt", "did you mean TinyText?"),
        ("--model.encoders.photo.dim 8", "--model.encoders.photo.dim has no class: give a class first"),
        ("--data Manifest", "did you mean ManifestData?"),
        ("--model.loss.inputs 0.5", "no option 'inputs' for model.loss: it is called auxiliary_weight now"),
        (
            "--model.encoders.text.levels [0]",
            "no option 'levels' for model.encoders.text: it is called hidden_layers now",
        ),
        ("--config levels.yaml", "no option 'doubt' for model.fusion: it is called kl_weight now"),
        ("--data.batch_siz 3", "no option 'batch_siz' for data; did you mean batch_size?"),
        ("--data.inptus {text:~text}", "no option 'inptus' for data; did you mean inputs?"),
        ("--data.inptus.text text", "no option 'inptus' for data; did you mean inputs?"),
        ("--model.fusion.dimm {a:~1}", "no option 'dimm' for model.fusion; did you mean dim?"),
        ("--data.inputs 3", "data.inputs is 3, expected a dictionary such as '{name: value}' or null"),
        ("--data.input_dropout {text:~high}", "data.input_dropout is high in {'text': 'high'}, expected a number"),
        ("--data.manifest", "--data.manifest has no value"),
        ("--trainer.max_epoch 3", "there is no option --trainer.max_epoch; did you mean --trainer.max_epochs?"),
        ("--data.batch_size 3 --data.batch_size=4", "--data.batch_size is given twice (3 and 4): give it once"),
        ("--model.optimizer.lr 1 --model.optimizer.init_args.lr 2", "--model.optimizer.lr is given twice (1 and 2)"),
        ("stray", "'stray' is not the value of an option"),
        ("--trainer stray", "--trainer stray: there is no such file"),
        ("--seed_everything -1", "seed_everything is -1, expected true or false or a whole number from 0"),
        ("--trainer.accelerator tpu9", "trainer: You selected an invalid accelerator name: `accelerator='tpu9'`"),
        ("--trainer.strategy foo", "invalid strategy name: `strategy='foo'`"),
        ("--trainer.val_check_interval 0", "trainer.val_check_interval is 0"),
        ("--trainer.accumulate_grad_batches 0", "trainer.accumulate_grad_batches is 0, expected at least 1"),
        ("--early_stopping.monitor val/acuracy", "no run measures 'val/acuracy'; did you mean val/accuracy?"),
        ("--checkpoint.monitor val_loss", "no run measures 'val_loss'; did you mean val/loss?"),
        ("--checkpoint.mode sideways", "`mode` can be min, max but got sideways"),
        ("--config broken.yaml", "broken.yaml, line 2, column 1 is not YAML"),
        ("--config broken.yaml --ckpt_path weights", "broken.yaml, line 2, column 1 is not YAML"),
        ("--config epoch.yaml", "there is no option trainer.max_epoch; did you mean trainer.max_epochs?"),
        ("--config folder", "--config folder is a folder, expected a YAML file"),
        ("--config nowhere.yaml", "data: there is no module 'nowhere' for nowhere.Data"),
        ("--config wide.yaml", "dim of fusion_pl.encoders.TinyText in model.encoders is wide, expected a whole number"),
    ],
)
def test_the_message_names_the_error(config, without_training, arguments, match, capsys, tmp_path):
    (tmp_path / "afile").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "weights").write_bytes(b"\x80\x04")
    (tmp_path / "broken.yaml").write_text("model:\n\t- x\n")
    (tmp_path / "epoch.yaml").write_text("trainer: {max_epoch: 3}\n")
    (tmp_path / "levels.yaml").write_text("model: {fusion: {class_path: Evidential, init_args: {doubt: 0.2}}}\n")
    (tmp_path / "nowhere.yaml").write_text("data: {class_path: nowhere.Data}\n")
    (tmp_path / "wide.yaml").write_text(
        "model: {encoders: {text: {class_path: fusion_pl.encoders.TinyText, init_args: {dim: wide}}}}\n"
    )
    words = [word.replace("~", " ") for word in arguments.split()]
    assert match in error_of("fit", ["--config", config, *words], capsys)


@pytest.mark.parametrize("option", ["early_stopping", "checkpoint"])
def test_a_metric_that_the_head_does_not_have_is_refused(config, without_training, option, capsys):
    weight = [f"--{option}.monitor", "val/weight/text"]
    message = error_of("fit", ["--config", config, "--model.fusion", "Concat", *weight], capsys)
    assert message.startswith(f"--{option}.monitor: no run measures 'val/weight/text'; ")
    assert run("fit", ["--config", config, *weight]) == 0  # Weighted


def test_a_metric_that_no_encoder_has_is_refused_after_the_first_validation(config, capsys):
    arguments = ["--config", config, "--early_stopping.monitor", "val/layer_weight/text/1"]
    message = error_of("fit", arguments, capsys)
    assert message.startswith("--early_stopping.monitor: this run does not measure 'val/layer_weight/text/1' in ")


@pytest.mark.parametrize("option", ["early_stopping.check_on_train_epoch_end", "checkpoint.save_on_train_epoch_end"])
def test_a_metric_of_the_training_is_read_at_the_end_of_an_epoch(config, without_training, option, capsys):
    name = option.partition(".")[0]
    arguments = ["--config", config, f"--{name}.monitor", "train/loss", f"--{name}.mode", "min"]
    message = error_of("fit", arguments, capsys)
    assert message.startswith(f"--{name}.monitor: 'train/loss' is known at the end of an epoch, after its validation: ")
    assert f"give --{option} true" in message
    assert run("fit", [*arguments, f"--{option}", "true"]) == 0


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ("", "required: model.encoders, model.fusion, data; give --model.encoders"),
        ("--data.manifest m.csv", "--data.manifest has no class: give a class first, such as --data ManifestData"),
        ("--data ManifestData", "required: data.manifest; give --data.manifest"),
    ],
)
def test_missing_options_are_named(config, without_training, arguments, match, capsys):
    assert match in error_of("fit", arguments.split(), capsys)


@pytest.mark.skipif(not UNREADABLE.exists(), reason="Linux has a file that root cannot read either")
def test_a_configuration_that_cannot_be_read(without_training, capsys):
    message = error_of("fit", ["--config", str(UNREADABLE)], capsys)
    assert message == f"cannot read {UNREADABLE}: Permission denied: give a file that you may read"


def test_a_file_with_the_name_of_a_default_value_is_allowed(config, without_training, tmp_path):
    (tmp_path / "auto").write_text("auto")  # jsonargparse reads --trainer.strategy auto from a file of this name
    assert run("fit", ["--config", config]) == 0


def test_options_that_may_be_repeated(config, without_training):
    callbacks = ["--trainer.callbacks+", "DeviceStatsMonitor", "--trainer.callbacks.cpu_stats", "true"]
    callbacks += ["--trainer.callbacks+", "ModelSummary", "--trainer.callbacks.max_depth", "2"]
    assert run("fit", ["--config", config, "--config", config, *callbacks]) == 0
    own = ["--trainer.callbacks", "DeviceStatsMonitor", "--checkpoint.monitor", "what/it/logs"]
    assert run("fit", ["--config", config, *own]) == 0


@pytest.mark.parametrize(
    ("subcommand", "arguments", "match"),
    [
        ("predict", "--ckpt_path a --ckpt_path b", "--ckpt_path is given twice (a and b)"),
        ("predict", "--ckpt_path a --columns photo animal", "commas without spaces between the items of a list (a,b)"),
        ("predict", "--ckpt_pat a --data.manifest m.csv --output p.csv", "did you mean --ckpt_path?"),
        ("predict", "--ckpt_path a --data.manifest m.csv --output p.csv --data.batch_size x", "data.batch_size is x"),
        ("--completion", "fish", "--completion fish: expected bash"),
        ("compare", "--config c --config d --output o", "--config is given twice (c and d)"),
        ("compare", "--config config.yaml --output o --fusion Concat", "no option --fusion; did you mean --fusions?"),
        ("compare", "--config config.yaml --output o --seeds x", "--seeds"),
        ("compare", "--config config.yaml --output o --data.batch_siz 3", "did you mean batch_size?"),
    ],
)
def test_errors_of_the_other_commands(config, subcommand, arguments, match, capsys, monkeypatch):
    from fusion_pl.__main__ import main

    monkeypatch.setattr(sys, "argv", ["fusion-pl", subcommand, *arguments.split()])
    assert main() == 2
    told = capsys.readouterr().err
    assert match in told
    assert told.count("\n") == 1
    assert not os.path.exists("o")


def test_predict_keeps_the_output_when_the_manifest_is_missing(config, capsys, tmp_path):
    (tmp_path / "p.csv").write_text("before")
    arguments = ["--ckpt_path", "a.ckpt", "--data.manifest", "gone.csv", "--output", "p.csv"]
    assert error_of("predict", arguments, capsys)
    assert (tmp_path / "p.csv").read_text() == "before"


def test_the_options_of_compare_have_types():
    parser = compare_parser()
    assert isinstance(parser, PlainParser)
    assert {"config", "fusions", "seeds", "output", "jobs"} <= {option.dest for option in parser._actions}


def test_a_label_column_of_ids_is_refused(config, table, without_training, capsys):
    """Every row has its own class: the message is about the label, not the splits."""
    data = ManifestData(str(table), label="id", num_workers=0)
    from fusion_pl.encoders import TinyText

    data.processors = {"text": TinyText(dim=8).processor}
    with pytest.raises(UserError, match=r"the label column 'id' has 40 different values in 40 rows.*data\.label"):
        data.setup("fit")


def test_a_folder_instead_of_a_file_is_refused(tmp_path):
    from fusion_pl.encoders import TinyImage

    (tmp_path / "pictures").mkdir()
    (tmp_path / "m.csv").write_text("image,label,split\n" + "".join(
        f"pictures,{label},{split}\n" for label in "ab" for split in ("train", "val", "test")))  # fmt: skip
    data = ManifestData(str(tmp_path / "m.csv"), num_workers=0)
    data.processors = {"image": TinyImage().processor}
    with pytest.raises(UserError, match="'pictures' is a folder, expected a file"):
        data.setup("fit")


def test_a_long_text_is_read(tmp_path):
    from fusion_pl.tables.read_table import read_table

    text = "word " * 50_000
    (tmp_path / "long.csv").write_text(f"text,label\n{text},a\n")
    assert read_table(str(tmp_path / "long.csv")).cells("text") == [text]
    with pytest.raises(csv.Error, match="field larger"):  # the limit of others' readers stays theirs
        list(csv.reader([text]))
