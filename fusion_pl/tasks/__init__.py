"""Tasks: what the label of a sample is, how it is read, trained, decided and measured."""

from fusion_pl.tasks.base import LabelColumn, Task
from fusion_pl.tasks.multi_class import MultiClass
from fusion_pl.tasks.multi_label import MultiLabel
from fusion_pl.tasks.ordinal import Ordinal

__all__ = ["LabelColumn", "MultiClass", "MultiLabel", "Ordinal", "Task"]
