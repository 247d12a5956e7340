"""What this machine computes fastest, where the user left the choice open."""

from __future__ import annotations

import ctypes
import os
import sys

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

# Parameters below which a step is so short that overheads count: conversions to bfloat16, threads that wait.
SMALL_MODEL = 5_000_000
# The numbers of glibc's malloc.h for its two habits of giving memory back.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def choose_precision(model: nn.Module, accelerator: str = "auto") -> str:
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
    if parameters < SMALL_MODEL:
        rank_zero_info(
            "Precision 32-true: the model is too small to gain from bfloat16 (--trainer.precision bf16-mixed)."
        )
        return "32-true"
    rank_zero_info(
        f"Precision bf16-mixed: this {device} computes it faster (--trainer.precision 32-true to switch off)."
    )
    return "bf16-mixed"


def choose_num_threads(model: nn.Module, workers: int) -> int:
    """Choose how many threads compute on a CPU, and say so.

    A small step is over before a second thread has helped, and threads that wait for each other while a loader's worker
    has their core take several times as long. So a small model leaves the workers their cores.

    Args:
        model: what is trained.
        workers: of the loader.

    Returns:
        a number for ``torch.set_num_threads``.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if sum(parameter.numel() for parameter in model.parameters()) >= SMALL_MODEL:
        return cores
    threads = max(1, cores - workers)
    rank_zero_info(f"Threads: {threads} of {cores} cores compute, the loader has the rest (--threads {cores} for all).")
    return threads


def keep_memory() -> bool:
    """Let the C library keep freed memory for the next step, and say so.

    A step on a CPU allocates the same large tensors as the one before. By default glibc returns each to the system at
    once, which then hands out zeroed pages again, 4 KiB at a time: a third of a convolutional network's time.

    Returns:
        whether it could be done; only glibc has the setting.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # 1 is success. No blocks of their own, which would be returned when freed; no end of the heap is returned either.
    if mallopt is None or mallopt(M_MMAP_MAX, 0) != 1 or mallopt(M_TRIM_THRESHOLD, -1) != 1:
        return False
    rank_zero_info("Memory: kept between steps, faster on a CPU (--keep_memory false to return it to the system).")
    return True
