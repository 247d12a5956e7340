from __future__ import annotations

import pytest
import torch
from torch import nn

from fusion_pl.config import Configurable, config_of, import_class
from fusion_pl.encoders.base import Encoder
from fusion_pl.encoders.tiny_text import TinyText
from fusion_pl.fusion import Concat
from fusion_pl.fusion.base import Fusion
from fusion_pl.types import UserError


class Outer(Configurable, nn.Module):
    def __init__(self, width, *, depth=1, **kwargs):
        super().__init__()
        self.options = kwargs


class Inner(Outer):
    def __init__(self, width, extra=3):
        super().__init__(width + 1, depth=7)


def test_only_the_arguments_of_the_user_are_recorded():
    assert Inner(2).init_args == {"width": 2}
    assert Outer(1, depth=2, colour="red").init_args == {"width": 1, "depth": 2, "colour": "red"}


def test_a_config_builds_an_equal_part():
    head = Concat({"text": 4}, 3, hidden=5)
    config = config_of(head, omit=("dims", "num_classes"))
    assert config == {"class_path": "fusion_pl.fusion.concat.Concat", "init_args": {"hidden": 5}}
    again = import_class(config["class_path"], Fusion)({"text": 4}, 3, **config["init_args"])
    again.load_state_dict(head.state_dict())


def test_arguments_that_are_not_plain_data_are_refused():
    with pytest.raises(UserError, match=r"Outer\(width=…\) is a Linear: a checkpoint stores only"):
        config_of(Outer(nn.Linear(1, 1)))
    with pytest.raises(UserError, match="is a Tensor"):
        config_of(Outer({"a": [torch.zeros(1)]}))


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("os.system", "not part of fusion-pl"),
        ("subprocess.Popen", "--trust subprocess"),
        ("fusion_pl_evil.Head", "not part of fusion-pl"),
        ("fusion_pl.config.importlib", "not a Encoder|not an Encoder"),
        ("fusion_pl.fusion.Concat", "is not a Encoder"),
        ("fusion_pl.encoders.Nothing", "cannot be imported here"),
        ("fusion_pl.nothing.Nothing", "cannot be imported here"),
        ("TinyText", "not part of fusion-pl"),
    ],
)
def test_untrusted_or_wrong_classes_are_refused(path, match):
    with pytest.raises(UserError, match=match):
        import_class(path, Encoder)


def test_classes_of_a_trusted_package_are_imported():
    assert import_class("tests.test_config.Inner", Configurable, trust=["tests"]).__name__ == "Inner"
    assert import_class("fusion_pl.encoders.TinyText", Encoder) is TinyText
