"""Write a model as an ONNX file, with its preprocessing and a program that runs it without torch."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from fusion_pl.export import preprocess, runner
from fusion_pl.export.graph import Arguments, ExportedModel, example_arguments, other_arguments, trace
from fusion_pl.export.quantize import quantize_int8
from fusion_pl.messages import error_reason
from fusion_pl.module import FusionClassifier
from fusion_pl.types import UserError

TOLERANCE = 1e-4  # of the probabilities of the examples, between PyTorch and onnxruntime
MAX_BYTES = 2 * 10**9  # of a protobuf file
MODEL, SETTINGS, RUNNER = "model.onnx", "preprocess.json", "runner.py"
PREPROCESS = "fusion_pl_preprocess.py"  # a name that no module of a user has


def write_onnx(model: FusionClassifier, folder: Path, quantize: bool = False) -> None:
    """Write ``model.onnx``, its ``preprocess.json``, ``runner.py``, and ``fusion_pl_preprocess.py``, which it imports.

    Args:
        model: a trained classifier, in evaluation mode.
        folder: existing folder.
        quantize: whether linear layers and embeddings have 8-bit weights.

    Raises:
        UserError: if a part of the model cannot be exported, or gives other results in onnxruntime.
    """
    if (size := sum(tensor.nbytes for tensor in model.state_dict().values())) > MAX_BYTES:
        raise UserError(f"the model has {size / 1e9:.1f} GB, and an ONNX file at most 2 GB: use --format torch")
    settings = runner_settings(model)
    arguments, _ = example_arguments(model)
    names = input_names(arguments)
    exported = trace(model)
    with torch.no_grad():
        outputs = ExportedModel(model)(*arguments)
    try:
        # The decomposition of fused attention has other strides than the graph expects, in T5 and Swin.
        with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
            warnings.simplefilter("ignore")  # about internals of the exporter
            program = torch.onnx.export(
                exported, dynamo=True, input_names=names, output_names=list(outputs), verbose=False
            )
            assert program is not None
            for node in program.model.graph.all_nodes():  # stack traces with the paths of this machine
                node.metadata_props.clear()
                node.doc_string = None
            program.save(str(folder / MODEL), external_data=False)
    except torch.onnx.OnnxExporterError as error:
        reason = error_reason(error.__cause__ or error)
        raise UserError(f"the model cannot be written as ONNX ({reason}): use --format torch") from error
    check_outputs(folder / MODEL, model)
    if quantize:
        quantize_int8(model, folder / MODEL)
        check_outputs(folder / MODEL, model, tolerance=math.inf)
    (folder / SETTINGS).write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")
    for module, file in ((preprocess, PREPROCESS), (runner, RUNNER)):
        code = Path(str(module.__file__)).read_text(encoding="utf-8")
        code = code.replace("from fusion_pl.export.preprocess", f"from {Path(PREPROCESS).stem}")
        (folder / file).write_text(code, encoding="utf-8")


def runner_settings(model: FusionClassifier) -> dict[str, Any]:
    """Return the content of ``preprocess.json``.

    Raises:
        UserError: if the runner cannot process an input.
    """
    inputs = {}
    for name, processor in model.processors.items():
        try:
            inputs[name] = processor.runner_settings()
        except UserError as error:
            raise UserError(f"the input {name!r} cannot be processed without torch: {error}") from error
    return {"format": 1, "classes": model.classes, "inputs": inputs}


def input_names(arguments: Arguments) -> list[str]:
    """Return the names of the graph's inputs: ``text.ids``, ``text.mask``, …, and ``text.present``."""
    inputs, present = arguments
    return [
        *(f"{name}.{key}" for name, tensors in inputs.items() for key in tensors),
        *(f"{n}.present" for n in present),
    ]


def check_outputs(path: Path, model: FusionClassifier, tolerance: float = TOLERANCE) -> None:
    """Run the file on examples of several lengths, numbers and subsets, and compare the probabilities with PyTorch's.

    Raises:
        UserError: if onnxruntime cannot run the file, or the probabilities differ.
    """
    import onnxruntime

    differences = []
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        for arguments in (example_arguments(model)[0], *other_arguments(model)):
            inputs, present = arguments
            tensors = [*(tensor for part in inputs.values() for tensor in part.values()), *present.values()]
            feed = dict(zip(input_names(arguments), (tensor.numpy() for tensor in tensors), strict=True))
            (probabilities,) = session.run(["probabilities"], feed)
            with torch.no_grad():
                expected = ExportedModel(model)(*arguments)["probabilities"].numpy()
            differences.append(np.abs(probabilities - expected).max())
    except Exception as error:  # onnxruntime has no common class of errors
        raise UserError(f"onnxruntime cannot run the model ({error_reason(error)}): use --format torch") from error
    difference = float(np.max(differences))
    if not difference <= tolerance:
        raise UserError(
            f"the probabilities of the exported model differ by {difference:.2g} from those of PyTorch: use "
            "--format torch"
        )
