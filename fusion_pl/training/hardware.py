"""What this machine computes fastest, where the user left the choice open."""

from __future__ import annotations

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

# Below this, converting between the two formats costs more than the arithmetic saves.
SMALLEST_MODEL_FOR_BF16 = 5_000_000


def favoured_precision(model: nn.Module, accelerator: str = "auto") -> str:
    """Choose ``bf16-mixed`` where the hardware has bfloat16 units and the model is large enough to gain, and say so.

    Args:
        model: what is trained or evaluated.
        accelerator: as given to the trainer.

    Returns:
        a value of ``trainer.precision``.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if accelerator in {"auto", "gpu", "cuda"} and torch.cuda.is_available():
        able, device = torch.cuda.is_bf16_supported(including_emulation=False), "GPU"
    elif accelerator in {"auto", "cpu"} and not torch.backends.mps.is_available():
        capabilities = torch.cpu.get_capabilities()
        able, device = capabilities.get("avx512_bf16", False) or capabilities.get("amx_bf16", False), "CPU"
    else:
        return "32-true"
    if not able:
        rank_zero_info(
            f"Precision 32-true: this {device} has no bfloat16 units (--trainer.precision bf16-mixed to insist)."
        )
        return "32-true"
    if parameters < SMALLEST_MODEL_FOR_BF16:
        rank_zero_info(
            "Precision 32-true: the model is too small to gain from bfloat16 (--trainer.precision bf16-mixed)."
        )
        return "32-true"
    rank_zero_info(
        f"Precision bf16-mixed: this {device} computes it faster (--trainer.precision 32-true to switch off)."
    )
    return "bf16-mixed"
