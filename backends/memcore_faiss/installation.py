"""Which faiss is installed, what it can do, and on which device to search with it."""

from __future__ import annotations

import re
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Final

import attrs
import faiss
import torch

from memcore.errors import BackendError, ConfigError

_WHEELS: Final = ("faiss-gpu-cuvs", "faiss-gpu-cu12", "faiss-gpu-cu11", "faiss-gpu", "faiss-cpu")
"""All of them install the one package ``faiss``."""

_DEVICE: Final = re.compile(r"auto|cpu|cuda(:\d+)?")


@attrs.frozen(kw_only=True)
class Installation:
    """The faiss that ``import faiss`` finds.

    Attributes:
        wheels: distributions installed that bring it, e.g. ``("faiss-cpu 1.15.1",)``. Empty if it came otherwise. More
            than one have overwritten each other's files.
        version: of the library.
        has_gpu: whether it was built with its GPU part.
        has_cagra: whether it was built with NVIDIA's cuVS, which brings CAGRA graphs.
        gpus: GPUs that it sees, 0 if it was built without.
    """

    wheels: tuple[str, ...]
    version: str
    has_gpu: bool
    has_cagra: bool
    gpus: int

    def __str__(self) -> str:
        source = " and ".join(self.wheels) or f"faiss {self.version}, not from a known wheel"
        if not self.has_gpu:
            return f"{source}, built for the CPU only"
        return f"{source}, built for GPUs {'with' if self.has_cagra else 'without'} CAGRA, {self.gpus} GPUs seen"


@cache
def installation() -> Installation:
    """Return what is installed. Asked once per process."""
    has_gpu = hasattr(faiss, "StandardGpuResources")
    return Installation(
        wheels=tuple(f"{name} {found}" for name in _WHEELS if (found := _version(name))),
        version=faiss.__version__,
        has_gpu=has_gpu,
        has_cagra=hasattr(faiss, "GpuIndexCagra"),
        gpus=faiss.get_num_gpus() if has_gpu else 0,
    )


def check_device(device: str) -> None:
    """Raise ConfigError unless this is a device that can be asked for, whether it is there or not."""
    if not _DEVICE.fullmatch(device):
        raise ConfigError(f"device must be 'auto', 'cpu', 'cuda' or 'cuda:N', got {device!r}")


def resolve_device(device: str, found: Installation) -> int | None:
    """Return the number of the GPU to search on, None for the CPU.

    Args:
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``. ``auto`` is torch's current GPU if both faiss and
            torch can use it, else the CPU.
        found: what is installed.

    Raises:
        ConfigError: it is none of these.
        BackendError: faiss or torch cannot use the GPU asked for.
    """
    check_device(device)
    usable = found.gpus > 0 and torch.cuda.is_available()
    if device == "auto":
        return torch.cuda.current_device() if usable else None
    if device == "cpu":
        return None
    if not found.has_gpu:
        raise BackendError(
            f"device {device!r} needs a faiss with GPU support, and this is {found}; "
            "install faiss-gpu in its place, or use device 'cpu'"
        )
    if not usable:
        raise BackendError(
            f"device {device!r} cannot be used: faiss sees {found.gpus} GPUs and torch "
            f"{torch.cuda.device_count()} ({found}); use device 'cpu' or 'auto'"
        )
    _, _, named = device.partition(":")
    number = int(named) if named else torch.cuda.current_device()
    if number >= min(found.gpus, torch.cuda.device_count()):
        raise BackendError(f"there is no device {device!r}: faiss sees {found.gpus} GPUs, numbered from 0")
    return number


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
