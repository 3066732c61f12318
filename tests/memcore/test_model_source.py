"""What a model is called, and where it comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from memcore.model_source import title_of


def test_a_model_is_called_by_its_folder_or_its_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny" / "inside").mkdir(parents=True)
    (tmp_path / "linked").symlink_to(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path / "tiny")
    for name, title in (
        (".", "tiny"),
        ("inside/..", "tiny"),
        ("../linked/", "linked"),
        (str(tmp_path / "tiny"), "tiny"),
    ):
        assert title_of(name) == title
    assert title_of("owner/name") == "owner/name"
