"""Checkpoint files under kill -9 and on full disks, and which state training restores from manipulated ones."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import tempfile
import threading
import time
import warnings
from pathlib import Path

import pytest
import torch

from fusion_pl.training.checkpoints import AtomicCheckpointIO
from tests.disk import small_disk
from tests.texts import BEST, LAST, RUN, fit, load, results

FILES = RUN / "checkpoints"


@pytest.fixture
def small(tmp_path):
    with small_disk(tmp_path / "small", "4m") as folder:
        yield folder


def test_kill_while_saving_keeps_the_previous_checkpoint(small, tmp_path, monkeypatch):
    """The temporary folder is on another file system, as /tmp often is."""
    monkeypatch.setattr(tempfile, "tempdir", str(small))
    path, rng = tmp_path / "last.ckpt", random.Random(0)
    torch.set_num_threads(1)  # a forked process has none of OpenMP's threads, and would wait for them without end
    found = set()
    for _ in range(12):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside torch's threads, which do nothing here
            child = os.fork()
        if child == 0:
            for count in range(1000):
                AtomicCheckpointIO().save_checkpoint({"count": count, "weights": torch.full((600_000,), count)}, path)
            os._exit(0)
        while not path.exists():
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.2))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        saved = torch.load(path, weights_only=True)
        assert saved["weights"].eq(saved["count"]).all()
        found.add(saved["count"])
    assert len(found) > 1
    assert len(list(tmp_path.glob("*.partial"))) <= 1  # the next start removes it


def test_a_small_disk_is_refused_before_training(fresh, small, capsys):
    (small / "other").write_bytes(bytes(3_000_000))
    wide = ["--model.encoders.text.init_args.dim", "48", "--model.fusion.dim", "128"]
    assert fit(*wide, "--checkpoint.dirpath", str(small / "runs")) == 2
    message = capsys.readouterr().err
    assert f"the disk {small}, where {small}/runs is, has 1 MB free" in message
    assert "--checkpoint.dirpath" in message
    assert not Path("lightning_logs").exists()
    assert fit(*wide, "--trainer.max_epochs", "1") == 0
    for path in (BEST, LAST):
        size = float(re.search(rf"{path.name} ([\d.]+) MB", message)[1]) * 1e6
        assert path.stat().st_size == pytest.approx(size, rel=0.2, abs=2e5)


def test_a_disk_that_fills_up_keeps_the_last_checkpoint(fresh, small, tmp_path, capsys):
    here = ["--trainer.logger.init_args.save_dir", str(small / "runs")]
    last = small / "runs/version_0/checkpoints/last.ckpt"
    over = threading.Event()

    def fill():
        while not last.exists() and not over.wait(0.01):
            pass
        with (small / "other").open("wb", buffering=0) as file:
            try:
                while not over.is_set():
                    file.write(bytes(4096))
            except OSError:
                pass

    thread = threading.Thread(target=fill)
    thread.start()
    try:
        assert fit(*here, "--trainer.max_epochs", "500") == 2
    finally:
        over.set()
        thread.join()
    message = capsys.readouterr().err
    assert f"the disk {small} is full" in message
    assert f"--ckpt_path {last}" in message
    before = load(last)["epoch"]
    assert not list(last.parent.glob("*.partial"))
    out = ["--ckpt_path", str(last), "--trainer.logger.init_args.save_dir", "elsewhere"]
    assert fit(*out, "--trainer.max_epochs", str(before + 2)) == 0
    assert load("elsewhere/version_0/checkpoints/last.ckpt")["epoch"] == before + 1
    (small / "other").unlink()
    assert fit(*here, "--ckpt_path", "last", "--trainer.max_epochs", str(before + 2)) == 0


def test_partial_files_of_a_killed_process_are_removed(again):
    (FILES / "last.ckpt.partial").write_bytes(b"half")
    assert fit("--ckpt_path", "last", "--trainer.max_epochs", "3") == 0
    assert sorted(os.listdir(FILES)) == [".lock", "best.ckpt", "last.ckpt"]


def change_checkpoint(change):
    checkpoint = load(LAST)
    change(checkpoint)
    torch.save(checkpoint, LAST)


def checkpoint_state(checkpoint):
    return next(state for key, state in checkpoint["callbacks"].items() if key.startswith("ModelCheckpoint"))


def test_a_checkpoint_cannot_choose_which_files_are_removed(again):
    """Lightning removes the worst of the best checkpoints at the path in the state."""
    Path("victim").mkdir()
    Path("victim/thesis.txt").write_text("three years")

    def aim(checkpoint):
        state = checkpoint_state(checkpoint)
        victim = state["dirpath"] + "/../../../victim"
        worst = torch.tensor(-1.0)
        state.update(best_k_models={victim: worst}, kth_best_model_path=victim, kth_value=worst)
        state.update(best_model_path=victim, best_model_score=worst, last_model_path=victim)

    change_checkpoint(aim)
    assert Path(checkpoint_state(load(LAST))["kth_best_model_path"]).is_dir()
    assert fit("--ckpt_path", "last", "--trainer.max_epochs", "4") == 0
    assert Path("victim/thesis.txt").read_text() == "three years"
    assert os.path.samefile(results()["checkpoint"], FILES / "best.ckpt")


def first_large(checkpoint):
    states = checkpoint["optimizer_states"][0]["state"]
    return max(states.values(), key=lambda state: state["exp_avg"].numel())


def fused(checkpoint):
    for group in checkpoint["optimizer_states"][0]["param_groups"]:
        group["fused"] = True


def small_moment(checkpoint):
    first_large(checkpoint)["exp_avg"] = torch.zeros(1)


def small_moment_and_fused(checkpoint):
    small_moment(checkpoint)
    fused(checkpoint)


def repeated_moment(checkpoint):
    """A tensor with stride 0: one number in memory with the shape of the weights."""
    state = first_large(checkpoint)
    state["exp_avg"] = torch.zeros(1).expand(state["exp_avg"].shape)
    fused(checkpoint)


def loops(checkpoint):
    return checkpoint["loops"]["fit_loop"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (small_moment_and_fused, "optimizer's exp_avg has shape (1,), expected"),
        (
            lambda c: c["optimizer_states"][0]["param_groups"][0].update(lr=float("nan")),
            "lr is nan, expected a finite number",
        ),
        (lambda c: loops(c)["epoch_progress"]["current"].update(ready=-1), "ready is -1, expected a count"),
        (lambda c: loops(c)["epoch_progress"]["current"].update(ready=9, processed=9), "is trained for 9 epochs"),
        (lambda c: c.update(callbacks=[]), "callbacks are not a dictionary"),
        (
            lambda c: checkpoint_state(c)["best_k_models"].update(
                dict.fromkeys(checkpoint_state(c)["best_k_models"], "x")
            ),
            "is 'x', expected",
        ),
        (lambda c: c.pop("optimizer_states"), "it contains only the model weights, not the training"),
    ],
)
def test_a_manipulated_state_is_one_sentence(again, change, message, capsys):
    change_checkpoint(change)
    before = {path: path.read_bytes() for path in RUN.rglob("*") if path.is_file()}
    assert fit("--ckpt_path", "last", "--trainer.max_epochs", "3") == 2
    assert message in capsys.readouterr().err
    assert {path: path.read_bytes() for path in RUN.rglob("*") if path.is_file()} == before


def test_unknown_keys_are_not_restored(again):
    """They would replace methods and options; shared memory would be written twice."""

    def change(checkpoint):
        checkpoint["lr_schedulers"][0].update(get_lr="no", step=3)
        checkpoint["optimizer_states"][0]["param_groups"][0].update(surprise=1)
        checkpoint["callbacks"]["EarlyStoppingOfSomeoneElse"] = {"patience": 0}
        next(state for key, state in checkpoint["callbacks"].items() if key.startswith("EarlyStopping{"))[
            "patience"
        ] = 0
        repeated_moment(checkpoint)

    change_checkpoint(change)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint.*")
        assert fit("--ckpt_path", "last", "--trainer.max_epochs", "4", "--model.optimizer.fused", "false") == 0
    after = load(LAST)
    assert after["epoch"] == 3
    assert not any(group["fused"] for group in after["optimizer_states"][0]["param_groups"])
    assert first_large(after)["exp_avg"].abs().sum() > 0


def test_checkpoints_of_earlier_versions_are_resumed(again):
    def change(checkpoint):
        for key in ("losses", "best_step"):
            checkpoint_state(checkpoint).pop(key)
        for key in ("step", "validated"):
            checkpoint["callbacks"]["WriteResults"].pop(key)

    best = checkpoint_state(load(LAST))["best_model_score"]
    change_checkpoint(change)
    shutil.copy(LAST, "before.ckpt")
    assert fit("--ckpt_path", "last", "--trainer.max_epochs", "3") == 0
    assert checkpoint_state(load(LAST))["best_model_score"] >= best
    assert results()["epochs"] == 3
