"""Splits by group, by time, by fold and from a file: in functions, in the data module and in the command."""

from __future__ import annotations

import csv
import random
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest
import yaml

from fusion_pl.cli.run import run
from fusion_pl.data import ManifestData
from fusion_pl.encoders import TinyText
from fusion_pl.tables.folds import draw_folds, parse_fold
from fusion_pl.tables.split_times import split_by_time
from fusion_pl.tables.splits import SPLITS, TEST, TRAIN, VAL
from fusion_pl.types import UserError
from tests.texts import RUN, fit, load, write_config

CLASSES = ("ash", "birch", "cedar")


def write(path, records):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for record in records for name in record)))
        writer.writeheader()
        writer.writerows(records)
    return str(path)


def records(rows, with_ids=True, **columns):
    """Rows with unique texts, and columns that are functions of the row."""
    return [
        ({"id": f"s{row}"} if with_ids else {})
        | {"text": f"thing {row}", "label": CLASSES[row % 3]}
        | {name: value(row) for name, value in columns.items()}
        for row in range(rows)
    ]


def build(path, stage="fit", **options):
    data = ManifestData(path, num_workers=0, **options)
    data.processors = {"text": TinyText().processor}
    data.setup(stage)
    return data


def texts(data):
    """Return a dictionary from split to the texts of its rows."""
    return {split: {sample.inputs["text"] for sample in samples(data, split)} for split in SPLITS}


def samples(data, split):
    dataset = data.samples(split)
    return [dataset[index] for index in range(len(dataset))]


def split_of(data):
    """Return a dictionary from text to its split."""
    return {text: split for split, found in texts(data).items() for text in found}


def refused(path, **options):
    with pytest.raises(UserError) as error:
        build(path, **options)
    return str(error.value)


# -------------------------------------------------------------------------------------------------------------- groups
def speaker(row):
    return "" if row % 10 == 9 else f"speaker {row * 7 % 23}"


def test_no_group_is_in_two_splits_and_every_class_is_trained_on(tmp_path):
    table = records(200, speaker=speaker)
    path = write(tmp_path / "m.csv", table)
    seen = set()
    for seed in range(30):
        data = build(path, group="speaker", seed=seed)
        splits = split_of(data)
        assert len(splits) == 200
        assert min(data.class_counts) > 0
        assert min(map(len, texts(data).values())) > 0
        groups = {}
        for record in table:
            if record["speaker"]:
                groups.setdefault(record["speaker"], set()).add(splits[record["text"]])
        assert set(map(len, groups.values())) == {1}
        # rows without a group are drawn one by one
        assert len({splits[record["text"]] for record in table if not record["speaker"]}) > 1
        seen.add(tuple(sorted(map(str, groups.items()))))
    assert len(seen) > 20


def test_a_group_keeps_its_split_when_the_table_changes(tmp_path):
    table = records(300, speaker=lambda row: f"speaker {row % 60}")
    before = split_of(build(write(tmp_path / "m.csv", table), group="speaker"))
    more = [record | {"text": record["text"] + " again", "id": record["id"] + "b"} for record in table[:100]]
    after = split_of(build(write(tmp_path / "m.csv", [*more, *table[50:]]), group="speaker"))
    assert after.items() >= {text: before[text] for text in (record["text"] for record in table[50:])}.items()
    assert all(after[f"{text} again"] == before[text] for text in (record["text"] for record in table[:100]))


def test_validation_rows_are_drawn_by_group_if_the_table_has_only_train_and_test(tmp_path):
    table = records(120, speaker=lambda row: row % 30, split=lambda row: "test" if row % 30 < 5 else "train")
    parts = texts(build(write(tmp_path / "m.csv", table), group="speaker"))
    speakers = {split: {int(text.split()[1]) % 30 for text in found} for split, found in parts.items()}
    assert speakers["test"] == set(range(5))
    assert speakers["train"].isdisjoint(speakers["val"])
    assert speakers["val"]


def test_a_group_in_two_splits_of_the_table_is_refused(tmp_path):
    table = records(12, speaker=lambda row: f"p{row % 5}", split=lambda row: ("train", "val", "test")[row // 4])
    message = refused(write(tmp_path / "m.csv", table), group="speaker")
    assert "row 2, column 'speaker': the group 'p0' is in two splits: this row is train, and row 7 is val" in message
    assert "no column 'speker'" in refused(write(tmp_path / "m.csv", table), group="speker")


def test_too_few_groups_are_explained(tmp_path):
    message = refused(write(tmp_path / "m.csv", records(30, speaker=lambda row: "one")), group="speaker")
    assert (
        "there is no val row: the splits have 30 train, 0 val, 0 test rows, because rows with the same 'speaker'"
        in message
    )


def test_the_rows_of_invalid_options_have_no_split(tmp_path):
    data = ManifestData(write(tmp_path / "m.csv", records(12)), group="speaker", num_workers=0)
    data.processors = {"text": TinyText().processor}
    assert "no column 'speaker'" in str(data.find_problems("fit")[0])
    assert set(data.row_splits) == {-1}


# ---------------------------------------------------------------------------------------------------------------- time
def test_splits_by_time_are_ordered_and_nearest_to_the_fractions():
    """Random times with ties: every later split is later, and no split is empty if there are three times."""
    rng = random.Random(0)
    for _ in range(500):
        size = rng.randint(3, 60)
        times = np.array([rng.randrange(rng.choice([3, 10, 1000])) for _ in range(size)], float)
        val, test = rng.choice([(0.15, 0.15), (0.4, 0.3), (0.05, 0.0)])
        splits = split_by_time(times, {"val": val, "test": test})
        limits = [(times[splits == split].min(), times[splits == split].max()) for split in np.unique(splits)]
        ordered = [time for split in (TRAIN, VAL, TEST) if (splits == split).any() for time in limits.pop(0)]
        assert ordered == sorted(ordered)
        for earlier, later in ((TRAIN, VAL), (TRAIN, TEST), (VAL, TEST)):
            assert not set(times[splits == earlier]) & set(times[splits == later])
        different = len(set(times))
        assert len(np.unique(splits)) == min(different, 3 if test else 2)
        if different == size:  # without ties the sizes are exact but for rounding
            assert abs((splits == TEST).sum() - test * size) <= max(1, 0.5 + (size < 10))
            assert abs((splits == TRAIN).sum() - (1 - val - test) * size) <= 1.5


@pytest.mark.parametrize("kind", ["numbers", "dates", "times with zones"])
def test_the_earliest_rows_are_train_and_the_latest_test(tmp_path, kind):
    start = datetime(2024, 1, 31, tzinfo=UTC)

    def time(row):
        at = 37 * row % 100
        date = start + timedelta(days=at)
        return {"numbers": str(at), "dates": date.date().isoformat(), "times with zones": date.isoformat()}[kind]

    path = write(tmp_path / "m.csv", records(100, recorded=time))
    found = texts(build(path, time="recorded", val_fraction=0.2, test_fraction=0.1))
    at = {split: {37 * int(text.split()[1]) % 100 for text in some} for split, some in found.items()}
    assert at == {"train": set(range(70)), "val": set(range(70, 90)), "test": set(range(90, 100))}


def test_rows_without_a_time_are_refused(tmp_path):
    table = records(9, at=lambda row: ("", "2024-02-30", "yesterday")[row] if row < 3 else f"2024-03-0{row}")
    message = refused(write(tmp_path / "m.csv", table), time="at")
    assert "row 2, column 'at': the time is empty: expected a number in every row, or an ISO date" in message
    assert "row 3, column 'at': '2024-02-30' is not a time like those of other rows" in message
    assert "row 4, column 'at'" in message
    assert "row 5" not in message


def test_splits_of_the_table_that_are_not_in_the_order_of_time_are_refused(tmp_path):
    table = records(12, at=lambda row: 100 - row, split=lambda row: ("train", "val", "test")[row // 4])
    message = refused(write(tmp_path / "m.csv", table), time="at")
    assert "train is not earlier than val: the train row 2 has the time 100, and the val row 9 has 93" in message


def test_new_rows_go_between_the_known_ones_by_their_time(tmp_path):
    first = build(write(tmp_path / "m.csv", records(60, at=str)), time="at")
    table = [
        record | {"id": f"n{record['id']}", "text": record["text"] + " new", "at": int(record["at"]) + 0.5}
        for record in records(200, at=str)
    ]
    second = ManifestData(write(tmp_path / "m.csv", records(60, at=str) + table), time="at", num_workers=0)
    second.processors = first.processors
    second.load_state_dict(first.state_dict())
    second.setup("fit")
    before, after = split_of(first), split_of(second)
    assert before.items() <= after.items()
    assert {after[f"thing {row} new"] for row in range(60, 200)} == {"test"}
    assert all(after[f"thing {row} new"] in (before[f"thing {row}"], before[f"thing {row + 1}"]) for row in range(59))


@pytest.mark.parametrize("options", [{}, {"time": "at"}, {"group": "at"}])
def test_a_checkpoint_moves_no_row_that_the_split_column_calls_train_to_test(tmp_path, options):
    first = build(write(tmp_path / "m.csv", records(60, at=str)), **options)
    test_rows = sorted(texts(first)["test"], key=lambda text: int(text.split()[1]))
    assert len(test_rows) > 3
    kept = set(test_rows[-2:])
    table = [row | {"split": "test" if row["text"] in kept else "train"} for row in records(60, at=str)]
    second = ManifestData(write(tmp_path / "m.csv", table), num_workers=0, **options)
    second.processors = first.processors
    second.load_state_dict(first.state_dict())
    second.setup("fit")
    found = texts(second)
    assert found["test"] == kept
    assert found["val"] >= texts(first)["val"]


# --------------------------------------------------------------------------------------------------------------- folds
def by_number_alone(keys, count, seed):
    """The rule of the documentation, without the exceptions for small tables."""
    import hashlib

    return [
        int(hashlib.blake2b(f"fold {seed} {key}".encode(), digest_size=8).hexdigest(), 16) // 2 * count >> 63
        for key in keys
    ]


def test_folds_of_small_tables_have_every_class_in_three_folds_and_none_is_empty():
    rng = random.Random(0)
    changed = 0
    for seed in range(400):
        size, classes, count = rng.randint(3, 40), rng.randint(1, 5), rng.randint(3, 6)
        keys = np.array([rng.randrange(2**62) if rng.random() < 0.8 else rng.randrange(4) for _ in range(size)])
        targets = np.array([int(key) % classes for key in keys])  # one class per key
        folds = draw_folds(targets, keys, count, seed)
        for key in set(keys.tolist()):
            assert len(set(folds[keys == key])) == 1
        for target in set(targets.tolist()):
            different = len(set(keys[targets == target]))
            assert len(set(folds[targets == target])) >= min(3, different)
        assert len(set(folds)) >= min(count, len(set(keys)) - 1)
        alone = by_number_alone(keys, count, seed)
        if len({*alone}) == count and all(len(set(np.array(alone)[targets == target])) >= 3 for target in set(targets)):
            assert folds.tolist() == alone
        else:
            changed += 1
        order = np.array(rng.sample(range(size), size))
        assert draw_folds(targets[order], keys[order], count, seed).tolist() == folds[order].tolist()
    assert 50 < changed < 350


def test_folds_of_groups_with_several_classes():
    rng = random.Random(1)
    for seed in range(200):
        size, classes, count, groups = rng.randint(30, 80), rng.randint(1, 3), rng.randint(3, 6), rng.randint(6, 12)
        keys = np.array([rng.randrange(groups) for _ in range(size)])
        targets = np.array([rng.randrange(classes) for _ in range(size)])
        folds = draw_folds(targets, keys, count, seed)
        assert all(len(set(folds[keys == key])) == 1 for key in set(keys.tolist()))
        for target in set(targets.tolist()):
            assert len(set(folds[targets == target])) >= min(3, len(set(keys[targets == target])))


def test_large_folds_are_equal_in_expectation_within_each_class():
    targets, keys = np.arange(20_000) % 4, np.arange(20_000)
    counts = np.bincount(draw_folds(targets, keys, 5, 0) * 4 + targets)
    assert (abs(counts - 1000) < 4 * (5000 * 0.2 * 0.8) ** 0.5).all()


@pytest.mark.parametrize("options", [{}, {"group": "speaker"}])
def test_every_row_is_tested_in_one_fold_and_validates_in_another(tmp_path, options):
    path = write(tmp_path / "m.csv", records(150, speaker=lambda row: f"p{row % 25}"))
    folds = [split_of(build(path, fold=f"{number}/4", **options)) for number in (1, 2, 3, 4)]
    for text in folds[0]:
        parts = [fold[text] for fold in folds]
        assert sorted(parts) == ["test", "train", "train", "val"]
        assert parts[parts.index("test") - 1] == "val"  # the fold that is tested next
    if options:
        for fold in folds:
            speakers = {}
            for text, split in fold.items():
                speakers.setdefault(int(text.split()[1]) % 25, set()).add(split)
            assert set(map(len, speakers.values())) == {1}
    assert split_of(build(path, fold="1/4", seed=1, **options)) != folds[0]


def test_a_row_keeps_its_fold_when_the_table_changes(tmp_path):
    table = records(300, with_ids=False)
    before = split_of(build(write(tmp_path / "m.csv", table), fold="2/5"))
    changed = [*table[200:], table[0] | {"label": "cedar"}, *table[1:150]]
    after = split_of(build(write(tmp_path / "m.csv", changed), fold="2/5"))
    assert after == {text: before[text] for text in after}


@pytest.mark.parametrize("text", ["0/5", "6/5", "1/2", "2", "a/b", "-1/5", "1/5/2", ""])
def test_a_fold_that_does_not_exist_is_refused(text):
    with pytest.raises(UserError, match=r"data.fold is .*expected a fold such as 2/5"):
        parse_fold(text)


def test_options_that_exclude_each_other_are_refused(tmp_path):
    path = write(tmp_path / "m.csv", records(30, split=lambda row: ("train", "val", "test")[row % 3]))
    for options in ({"time": "a", "group": "b"}, {"time": "a", "fold": "1/3"}, {"fold": "1/3", "splits": "s.csv"}):
        one, other = options
        with pytest.raises(UserError, match=r"exclude each other: give only one of them") as error:
            ManifestData(path, **options)
        assert one in str(error.value)
        assert other in str(error.value)
    for options in ({"fold": "1/3"}, {"splits": "s.csv"}):
        assert "column 'split': the column has the splits" in refused(path, **options)
    assert len(texts(build(path, fold="1/3", split=None))["test"]) > 0
    for name in ("val_fraction", "test_fraction"):
        with pytest.raises(UserError, match=r"data\.fold 1/3 is itself the fraction of val and test rows: leave out"):
            ManifestData(path, fold="1/3", split=None, **{name: 0.2})


# ---------------------------------------------------------------------------------------------------------------- file
@pytest.mark.parametrize("with_ids", [True, False])
def test_the_splits_of_another_run_are_used_again(tmp_path, with_ids):
    table = records(100, with_ids)
    first = build(write(tmp_path / "m.csv", table), seed=3, test_fraction=0.3)
    first.write_splits(tmp_path / "splits.csv")
    changed = [*table[50:], *records(130, with_ids)[100:], *table[:40]]
    second = build(write(tmp_path / "m.csv", changed), splits=str(tmp_path / "splits.csv"))
    before, after = split_of(first), split_of(second)
    assert {text: split for text, split in after.items() if text in before} == {
        text: before[text] for text in after if text in before
    }
    assert len(after) == 120
    assert len({after[f"thing {row}"] for row in range(100, 130)}) > 1


def test_a_file_of_a_user_needs_only_id_and_split(tmp_path):
    path = write(tmp_path / "m.csv", records(12))
    rows = [{"id": f"s{row}", "split": ("dev", "test", "train", "train")[row % 4]} for row in range(12)]
    data = build(path, splits=write(tmp_path / "s.csv", rows[::-1]))
    assert split_of(data) == {f"thing {row}": ("val", "test", "train", "train")[row % 4] for row in range(12)}
    without_ids = write(tmp_path / "m.csv", records(12, with_ids=False))
    numbers = [{"id": row + 2, "split": ("train", "val", "test")[row // 3 % 3]} for row in range(12)]
    data = build(without_ids, splits=write(tmp_path / "s.csv", numbers))  # the row number is the id of such a row
    assert split_of(data) == {f"thing {row}": ("train", "val", "test")[row // 3 % 3] for row in range(12)}


@pytest.mark.parametrize("name", ["s.csv", "s.parquet", "s.arrow"])
def test_the_ids_of_a_file_of_splits_may_be_numbers(tmp_path, name):
    table = [record | {"id": row} for row, record in enumerate(records(12))]
    columns = {"id": list(range(12)), "split": [SPLITS[row // 3 % 3] for row in range(12)]}
    if name == "s.csv":
        write(
            tmp_path / name, [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
        )
    else:
        save = pyarrow.parquet.write_table if name == "s.parquet" else pyarrow.feather.write_feather
        save(pyarrow.table(columns), str(tmp_path / name))
    data = build(write(tmp_path / "m.csv", table), splits=str(tmp_path / name))
    assert split_of(data) == {f"thing {row}": SPLITS[row // 3 % 3] for row in range(12)}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"id": "s1", "split": "train"}, {"id": "s1", "split": "test"}],
            "row 3, column 'id': the id 's1' is test here",
        ),
        ([{"id": "s1", "split": "tset"}], "row 2, column 'split': 'tset' is not a split"),
        ([{"id": "", "split": "test"}], "row 2, column 'id': None is not the id of a row"),
        ([{"hash": "xyz", "split": "test"}], "row 2, column 'hash': 'xyz' is not 16 hexadecimal digits"),
        ([{"id": "t1", "split": "test"}], "none of its rows is in"),
        ([{"name": "s1", "split": "test"}], "there is no column 'id' for the id of each row"),
        ([{"id": "s1", "part": "test"}], "there is no column 'split' for the split"),
    ],
)
def test_a_damaged_file_of_splits_is_refused(tmp_path, rows, message):
    found = refused(write(tmp_path / "m.csv", records(12)), splits=write(tmp_path / "s.csv", rows))
    assert message in found
    assert str(tmp_path / "s.csv") in found


def test_new_rows_of_a_known_group_get_its_split(tmp_path):
    table = records(100, speaker=lambda row: f"p{row % 20}")
    rows = [{"id": f"s{row}", "split": ("train", "val", "test")[row % 20 % 3]} for row in range(40)]
    data = build(write(tmp_path / "m.csv", table), group="speaker", splits=write(tmp_path / "s.csv", rows))
    assert split_of(data) == {f"thing {row}": ("train", "val", "test")[row % 20 % 3] for row in range(100)}


# ------------------------------------------------------------------------------------------------------------- command
@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a configuration and a table without a split column."""
    monkeypatch.setattr("sys.argv", ["fusion-pl"])
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path)
    with open("rows.csv", newline="") as file:
        table = list(csv.DictReader(file))
    for row, record in enumerate(table):
        record |= {"id": f"s{row}", "speaker": f"p{row % 12}", "at": str(row)}
        del record["split"]
    write("rows.csv", table)
    return tmp_path


def splits_csv(folder):
    with open(folder / "splits.csv", newline="") as file:
        return {row["id"]: row["split"] for row in csv.DictReader(file)}


@pytest.mark.parametrize(
    "options",
    [
        ["--data.group", "speaker"],
        ["--data.time", "at"],
        ["--data.fold", "2/3"],
        ["--data.fold=2/4", "--data.group=speaker"],
    ],
)
def test_the_command_trains_and_tests_on_the_same_splits(project, options, capsys):
    assert fit(*options, "--trainer.max_epochs", "1") == 0
    first = splits_csv(RUN)
    assert len(first) == 36
    assert run("test", ["--config", str(RUN / "config.yaml")]) == 0
    assert splits_csv(RUN.with_name("version_1")) == first
    assert fit("--data.splits", str(RUN / "splits.csv"), "--trainer.max_epochs", "1") == 0
    assert splits_csv(RUN.with_name("version_2")) == first
    config = yaml.safe_load((RUN / "config.yaml").read_text())["data"]["init_args"]
    assert options[-1].rpartition("=")[2] in config.values()
    assert load(RUN / "checkpoints/last.ckpt")["ManifestData"].keys() == {"table", *SPLITS}
    message = " ".join(capsys.readouterr().err.split())
    assert "as in " + str(RUN / "splits.csv") in message


@pytest.mark.parametrize(
    ("fold", "message"),
    [
        ("2/3", "test rows of fold 2 of 3 are validation rows of the checkpoint"),
        ("3/3", "the checkpoint was trained on"),
    ],
)
def test_a_checkpoint_of_another_fold_is_refused(tmp_path, fold, message):
    first = build(write(tmp_path / "m.csv", records(60)), fold="1/3")
    second = ManifestData(first.manifest, fold=fold, num_workers=0)
    second.processors = first.processors
    second.load_state_dict(first.state_dict())
    with pytest.raises(UserError, match=message):
        second.setup("test")
