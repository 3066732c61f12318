"""The texts of a training: found, read, and kept apart from those that measure it."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from memcore.errors import TrainingError, UnsupportedInputError
from memcore.files import not_empty, read_text
from memcore.prompt import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def read_documents(patterns: Iterable[str]) -> dict[Path, str]:
    """Return the texts of files, each once, in the order of the patterns and of names.

    Args:
        patterns: paths, or patterns such as ``texts/**/*.txt``.

    Raises:
        TrainingError: there is no such file, or one is no UTF-8 text, or empty.
    """
    texts: dict[Path, str] = {}
    for pattern in patterns:
        found = [Path(pattern)] if Path(pattern).is_file() else sorted(map(Path, glob.glob(pattern, recursive=True)))
        files = [path.resolve() for path in found if path.is_file()]
        if not files:
            raise TrainingError(f"no file is named {pattern!r}")
        for path in files:
            if path not in texts:
                texts[path] = _read(path)
    return texts


def check_apart(training: Mapping[Path, str], evaluation: Mapping[Path, str]) -> None:
    """Refuse texts to evaluate on that are among those trained on, under another name or as a part as well.

    Raises:
        TrainingError: with the names of both.
    """
    for path, text in evaluation.items():
        for other, trained in training.items():
            if path == other or text.strip() in trained or trained.strip() in text:
                same = "" if path == other else f", which has the same text as {other}"
                raise TrainingError(
                    f"{path}{same} is trained on, so what it is evaluated on would tell nothing; take it out of "
                    "documents or of evaluation"
                )


def digests(texts: Iterable[tuple[Path, str]]) -> dict[str, list[str]]:
    """Return the names of files by 16 hexadecimal digits of their texts, which say the same wherever the files lie."""
    names: dict[str, list[str]] = {}
    for path, text in texts:
        names.setdefault(hashlib.sha256(text.encode()).hexdigest()[:16], []).append(path.name)
    return names


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Mapping[Path, str], most: int | None) -> list[Tensor]:
    """Return the token ids of each text, ``[T]``, with those that begin a sequence.

    Args:
        tokenizer: the model's.
        texts: one document each.
        most: tokens in all; the text that exceeds it is cut, and those after it are left out. None for no limit.
    """
    found: list[Tensor] = []
    left = most
    for text in texts.values():
        if left is not None and left <= 0:
            break
        ids = encode(tokenizer, text, special=True)[0, :left]
        found.append(ids)
        left = None if left is None else left - len(ids)
    return found


def _read(path: Path) -> str:
    try:
        return not_empty(read_text(path), str(path))
    except UnsupportedInputError as error:
        raise TrainingError(str(error)) from error
