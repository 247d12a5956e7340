"""Choose the corruptions that fit the inputs of a model, and the samples that are measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from fusion_pl.data.rows import ManifestRows
from fusion_pl.evaluate.corrupt_images import IMAGE_CORRUPTIONS, is_image
from fusion_pl.evaluate.corrupt_sounds import SOUND_CORRUPTIONS
from fusion_pl.evaluate.corrupt_texts import TEXT_CORRUPTIONS
from fusion_pl.evaluate.corruption import Corruption, Sweep
from fusion_pl.messages import did_you_mean, join_names
from fusion_pl.processors.base import describe_type
from fusion_pl.tables.hashes import stable_hashes
from fusion_pl.types import UserError, Waveform

CORRUPTIONS = (*IMAGE_CORRUPTIONS, *SOUND_CORRUPTIONS, *TEXT_CORRUPTIONS)


def corruptions_of(value: Any) -> tuple[Corruption, ...]:
    """Return the corruptions of an opened value, by its type; empty if there are none.

    Example:
        >>> [corruption.name for corruption in corruptions_of("a text")]
        ['typos', 'dropped words', 'swapped words']
        >>> corruptions_of([1.0, 2.0])
        ()
    """
    if isinstance(value, str):
        return TEXT_CORRUPTIONS
    if isinstance(value, Waveform):
        return SOUND_CORRUPTIONS
    if is_image(value):
        return IMAGE_CORRUPTIONS
    return ()


class Choice(NamedTuple):
    """Inputs and names of corruptions that are to be measured."""

    inputs: list[str]
    corruptions: list[str]


def parse_sweeps(option: bool | list[str] | str, inputs: Sequence[str]) -> Choice | None:
    """Return the inputs and corruptions to measure; None = nothing is measured.

    Args:
        option: value of ``--sweeps``: names of inputs, of corruptions or of both; all inputs if none is given, and all
            corruptions if none is given.
        inputs: names of the inputs of the model.

    Raises:
        UserError: if there is no input or corruption of a name.
    """
    if option is False:
        return None
    wanted = [name.strip() for name in option.split(",")] if isinstance(option, str) else option
    wanted = [] if isinstance(wanted, bool) else wanted
    names = dict.fromkeys(corruption.name for corruption in CORRUPTIONS)
    for name in wanted:
        if name not in names and name not in inputs:
            known = [*inputs, *names]
            raise UserError(
                f"--sweeps: there is no input or corruption {name!r}{did_you_mean(name, known)}; expected true, false, "
                f"inputs ({join_names(inputs)}) or corruptions ({', '.join(names)})"
            )
    chosen = [name for name in inputs if name in wanted], [name for name in names if name in wanted]
    return Choice(chosen[0] or list(inputs), chosen[1] or list(names))


def choose_sweeps(samples: ManifestRows, rows: Sequence[int], choice: Choice) -> tuple[list[Sweep], dict[str, str]]:
    """Return the sweeps of a table, by the type of the first value of each input.

    Args:
        samples: samples of a table.
        rows: indices of the measured samples.
        choice: inputs and corruptions.

    Returns:
        The sweeps, and for each input without one the sentence that says why.
    """
    sweeps, notes = [], {}
    for name in choice.inputs:
        value = _first_value(samples, rows, name)
        if value is None:
            notes[name] = f"No measured row has the input {name}."
        elif not (corruptions := corruptions_of(value)):
            mode = f" of mode {value.mode}" if isinstance(value, Image.Image) else ""
            notes[name] = f"There is no corruption of {name}, whose opened values are {describe_type(value)}{mode}."
        elif not (fitting := [corruption for corruption in corruptions if corruption.name in choice.corruptions]):
            notes[name] = f"None of the chosen corruptions fits {name}."
        else:
            sweeps += [Sweep(name, corruption) for corruption in fitting]
    return sweeps, notes


def _first_value(samples: ManifestRows, rows: Sequence[int], name: str) -> Any:
    """Return the first opened value of an input; None if no sample has it."""
    for column in samples.columns:
        for row in rows if column.input == name else ():
            if column.cells[row] is not None and name in (inputs := samples[row].inputs):
                return inputs[name]
    return None


def draw_rows(samples: ManifestRows, rows: Sequence[int], max_samples: int, seed: int = 0) -> list[int]:
    """Return at most ``max_samples`` of the rows, those with the smallest hashes of seed and id, in their order."""
    if len(rows) <= max_samples:
        return list(rows)
    hashes = stable_hashes(f"sweeps {seed} {samples.sample_id(row)}" for row in rows)
    chosen = np.sort(np.argsort(hashes, kind="stable")[:max_samples])
    return [rows[index] for index in chosen]
