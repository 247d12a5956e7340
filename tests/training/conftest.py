"""Fixtures of several files."""

from __future__ import annotations

import sys

import pytest

from tests import calibrated


@pytest.fixture(scope="session")
def calibrated_folder(tmp_path_factory):
    """The folder of a run whose checkpoint is calibrated."""
    folder = tmp_path_factory.mktemp("calibrated")
    calibrated.write_table(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", sys.argv)
        assert calibrated.fit() == 0
    return folder


@pytest.fixture
def here(calibrated_folder, monkeypatch):
    """That folder as the current one; its tests write to other folders of runs."""
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.chdir(calibrated_folder)
    return calibrated_folder
