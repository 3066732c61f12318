from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from memcore.errors import UnsupportedInputError, WriteError
from memcore.files import not_empty, read_text, replacing


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with replacing(path) as new:
        new.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_old_one_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    def write() -> None:
        with replacing(path) as new:
            new.write_text("half")
            raise error

    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        with replacing(path) as new:
            if path.suffix:
                save_file({"a": torch.zeros(1)}, new)
            else:
                new.write_text("")

    for path in (tmp_path / "none" / "file", tmp_path / "none" / "file.safetensors"):
        with pytest.raises(WriteError, match="none"):
            write(path)


def test_a_text_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff")
    for name in ("binary", "nowhere"):
        with pytest.raises(UnsupportedInputError, match=name):
            read_text(tmp_path / name)


def test_a_text_without_words_is_refused_by_its_name() -> None:
    assert not_empty(" w1\n", "a.txt") == " w1\n"
    with pytest.raises(UnsupportedInputError, match=r"a\.txt has no text in it"):
        not_empty(" \n", "a.txt")
