"""Defaults for precision, threads and memory that depend on the hardware."""

from __future__ import annotations

import ctypes
import os
import sys

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from fusion_pl.processes import num_cores

# In a training step of a smaller model, overheads (conversion to bfloat16, synchronisation of threads) dominate.
SMALL_MODEL_PARAMETERS = 5_000_000
# Options of the C function mallopt, from glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def choose_precision(model: nn.Module, accelerator: str = "auto") -> str:
    """Choose ``bf16-mixed`` for a large model on hardware that supports bfloat16, and log the choice."""
    if accelerator in {"auto", "gpu", "cuda"} and torch.cuda.is_available():
        supported, device = torch.cuda.is_bf16_supported(including_emulation=False), "GPU"
    elif accelerator in {"auto", "cpu"} and not torch.backends.mps.is_available():
        capabilities = torch.cpu.get_capabilities()
        supported, device = capabilities.get("avx512_bf16", False) or capabilities.get("amx_bf16", False), "CPU"
    else:
        return "32-true"
    precision = "32-true"
    if not supported:
        reason = f"this {device} has no hardware for bfloat16 (--trainer.precision bf16-mixed to use it anyway)"
    elif _is_small_model(model):
        reason = "bfloat16 is not faster for a small model (--trainer.precision bf16-mixed to use it anyway)"
    else:
        precision = "bf16-mixed"
        reason = f"faster on this {device} (--trainer.precision 32-true to disable)"
    rank_zero_info(f"Precision {precision}: {reason}.")
    return precision


def choose_num_threads(model: nn.Module, num_workers: int) -> int:
    """Choose the number of threads on a CPU, and log the choice.

    A second thread does not speed up the short steps of a small model, and threads that share cores with data loader
    workers are several times slower. A small model therefore leaves one core to each worker.
    """
    cores = num_cores()
    if not _is_small_model(model):
        return cores
    threads = max(1, cores - num_workers)
    if threads < cores:
        rank_zero_info(
            f"Threads: {threads} of {cores} cores, the others for the data loader (--threads {cores} for all)."
        )
    return threads


def _is_small_model(model: nn.Module) -> bool:
    return sum(parameter.numel() for parameter in model.parameters()) < SMALL_MODEL_PARAMETERS


def reuse_freed_memory() -> bool:
    """Let glibc reuse freed memory in the next training step, and return whether this is supported.

    Each step on a CPU allocates the same large tensors. By default, glibc returns their memory to the operating system,
    which zeroes it when it is allocated again. For a convolutional network this takes a third of the training time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    # mallopt returns 1 on success. The first option disables mmap for large blocks, the second disables heap trimming.
    if mallopt is None or mallopt(M_MMAP_MAX, 0) != 1 or mallopt(M_TRIM_THRESHOLD, -1) != 1:
        return False
    rank_zero_info("Memory: kept between steps, faster on a CPU (--keep_memory false to disable).")
    return True


def avoid_driver_search() -> None:
    """Let torch find out in a microsecond that a machine has no GPU, which optimizers ask in every step.

    Lightning lets it ask in a way that works in forked processes, but searches the folders of libraries for a driver.
    """
    if not torch.cuda.is_available():
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
