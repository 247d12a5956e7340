"""Write the model card of an exported folder: ``README.md`` with data, metrics, limits and use."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from scipy.stats import binomtest

from fusion_pl.messages import error_reason
from fusion_pl.training.calibration_report import calibration_line, describe_calibration
from fusion_pl.types import UserError
from fusion_pl.uncertainty.calibration import Calibration

TEMPLATE = Path(__file__).with_name("card.md.jinja")
SHARES = ("accuracy", "exact_match")  # metrics that are shares of samples, so that Wilson's interval holds


def write_card(checkpoint: Mapping[str, Any], metrics: Path | None, name: str, folder: Path) -> None:
    """Write the card.

    Args:
        checkpoint: result of ``read_checkpoint``.
        metrics: ``metrics.json`` of a run or ``results.json`` of ``fusion-pl evaluate``; None = no metrics.
        name: name of the model.
        folder: existing folder.

    Raises:
        UserError: if the metrics cannot be read.
    """
    config = checkpoint["fusion_pl"]
    encoders = [
        (name, _class_name(part), part["init_args"].get("pretrained", "")) for name, part in config["encoders"].items()
    ]
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent), trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.filters["escape"] = escape_markdown
    task = _class_name(config["task"]) if config.get("task") else "MultiClass"
    page = environment.get_template(TEMPLATE.name).render(
        name=name,
        classes=config["classes"],
        encoders=encoders,
        head=_class_name(config["fusion"]),
        task=task,
        calibration=_describe_calibration(config),
        example=json.dumps({name: "…" for name, _, _ in encoders}, ensure_ascii=False),
        **({"source": None, "rows": [], "samples": {}} if metrics is None else read_metrics(metrics)),
    )
    (folder / "README.md").write_text(page, encoding="utf-8")


def _describe_calibration(config: Mapping[str, Any]) -> str:
    """Return what a run prints about its calibration, which may have been found useless, or only for subsets."""
    content = config.get("calibration")
    try:
        calibration = None if content is None else Calibration(**content)
        described = describe_calibration(calibration, {}, "+".join(config["encoders"]))
        line = calibration_line(described, f"{described.get('validation_samples')} validation")
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise UserError(f"the calibration in the checkpoint is damaged ({error_reason(error)}): train again") from error
    return line.replace("calibration:", "Calibration of the probabilities:", 1)


def read_metrics(path: Path) -> dict[str, Any]:
    """Return the ``source`` of the metrics, their ``rows`` (name, value, interval), and the ``samples`` per split.

    Raises:
        UserError: if the file is neither of a run nor of an evaluation.
    """
    try:
        content = json.loads(path.read_bytes())
        if "command" in content:
            samples = {str(split): int(count) for split, count in content["samples"].items()}
            rows = [(name, value, _wilson(name, value, samples)) for name, value in content["metrics"].items()]
            return {"source": f"fusion-pl {content['command']}", "rows": _format(rows), "samples": samples}
        rows = [(name, metric["value"], metric["interval"]) for name, metric in content["metrics"].items()]
        return {"source": "fusion-pl evaluate", "rows": _format(rows), "samples": {}}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"--metrics {path} cannot be read ({error_reason(error)}): give metrics.json of a run, or results.json of "
            "fusion-pl evaluate"
        ) from error


def _wilson(name: str, value: float, samples: Mapping[str, int]) -> tuple[float, float] | None:
    """Return the 95 % interval of a share of samples; None for other metrics."""
    split, _, metric = name.partition("/")
    count = samples.get(split, 0)
    if metric not in SHARES or not count:
        return None
    interval = binomtest(round(value * count), count).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def _format(rows: list[tuple[str, Any, Any]]) -> list[tuple[str, str, str]]:
    texts = []
    for name, value, interval in rows:
        ends = "" if interval is None else " to ".join(f"{end:.4f}" for end in interval)
        texts.append((name, "" if value is None else f"{value:.4f}", ends))
    return texts


def _class_name(part: Mapping[str, Any]) -> str:
    return str(part["class_path"]).rpartition(".")[2]


def escape_markdown(text: Any) -> str:
    r"""Return a text on one line, without effects in Markdown.

    Example:
        >>> escape_markdown("a|b\n*c*")
        'a\\|b \\*c\\*'
    """
    return re.sub(r"([\\`*_|<>\[\]&~$])", r"\\\1", " ".join(str(text).split()))
