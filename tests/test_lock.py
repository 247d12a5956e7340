"""The versions of the image (Dockerfile) fit pyproject.toml; ``make lock`` writes them."""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]


def test_every_requirement_has_a_version_in_its_range():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    versions = dict(line.split(" ;")[0].split("==") for line in lines)
    names = ("serve", "explain", "export", "hub")
    extras = (requirement for name in names for requirement in project["optional-dependencies"][name])
    for text in [*project["dependencies"], *extras]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(versions[requirement.name]), text
