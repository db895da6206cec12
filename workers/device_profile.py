"""What a worker tells of its device: as configured, the rest measured."""

from __future__ import annotations

import os
import time

import psutil
import torch

from workers.config import WorkerConfig
from workers.device import DeviceProfile


def make_profile(config: WorkerConfig) -> DeviceProfile:
    """Describe this device; what the configuration leaves open is measured."""
    return DeviceProfile(
        device="cuda" if torch.cuda.is_available() and not config.emulated else "cpu",
        cpu_count=1 if config.emulated else os.cpu_count() or 1,
        memory_bytes=config.memory_bytes or psutil.virtual_memory().available // 2,
        compute_flops=config.compute_flops or measure_flops(),
        layer_overhead_s=config.layer_overhead_s,
        power=config.power,
        emulated=config.emulated,
        pacing=config.pacing,
        torch=torch.__version__,
        pid=os.getpid(),
    )


def measure_flops(*, size: int = 512, repetitions: int = 8) -> float:
    """Measure the flop/s of matrix products with torch's present number of threads; the best of several."""
    a, b = torch.rand(size, size), torch.rand(size, size)
    best_s = min(_product_s(a, b) for _ in range(repetitions))
    return 2 * size**3 / best_s


def _product_s(a: torch.Tensor, b: torch.Tensor) -> float:
    started_s = time.perf_counter()
    a @ b
    return max(time.perf_counter() - started_s, 1e-9)
