"""Quantize an ONNX file to 8-bit integers."""

from __future__ import annotations

import logging
from pathlib import Path

from fusion_pl.module import FusionClassifier


def quantize_int8(model: FusionClassifier, path: Path) -> None:
    """Replace a file by one whose linear layers and embeddings have 8-bit weights.

    Activations are quantized when they are computed (dynamic quantization). Operations with buffers, such as the mel
    filter bank, stay in single precision, because their values have a large range; convolutions do too, because
    onnxruntime has no faster ones on a CPU.

    Args:
        model: model of the file.
        path: ``model.onnx``.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    content = onnx.load(path)
    del content.graph.value_info[:]  # has shapes of weights, which the quantization transposes
    buffers = {f"model.{name}" for name, _ in model.named_buffers()}
    excluded = [node.name for node in content.graph.node if buffers & set(node.input)]
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it recommends a step for models whose shapes are not known
    try:
        quantize_dynamic(
            content,
            path,
            op_types_to_quantize=["MatMul", "Gemm", "Gather"],
            nodes_to_exclude=excluded,
            weight_type=QuantType.QInt8,
            per_channel=True,
        )
    finally:
        logging.disable(disabled)
