"""Results on disk: one JSON file, rewritten as a whole after each result, so that an evaluation can go on later."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memcore.errors import EvaluationError
from memcore.evaluation.machine import describe_machine
from memcore.files import make_folder, parse_json, replacing


class Record:
    """The results of one evaluation with one group of settings.

    Attributes:
        results: by name, in the order in which they were made.
    """

    def __init__(self, path: Path, evaluation: str, settings: Mapping[str, Any]) -> None:
        """Open a record, or begin one.

        Args:
            path: of the file, whose folder is made if need be.
            evaluation: which one, e.g. ``"ppl"``.
            settings: everything that the results depend on but their names do not say, as plain values.

        Raises:
            EvaluationError: the file is no record, or one of another evaluation or of other settings.
            WriteError: the folder cannot be made.
        """
        self._path = path
        self._head = {"evaluation": evaluation, "settings": json.loads(json.dumps(settings))}
        self.results: dict[str, Any] = {}
        make_folder(path.parent)  # before hours of work that could not be kept
        if path.exists():
            self.results = self._read()

    def _read(self) -> dict[str, Any]:
        try:
            found = parse_json(self._path.read_text(encoding="utf-8"))
            head = {name: found[name] for name in self._head}
            results: Any = found["results"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EvaluationError(f"{self._path} is no record of an evaluation: {error!r}") from error
        if not isinstance(results, dict) or not isinstance(head["settings"], dict):
            raise EvaluationError(f"{self._path} is no record of an evaluation: settings and results must be objects")
        if head["evaluation"] != self._head["evaluation"]:
            raise EvaluationError(
                f"{self._path} holds results of {head['evaluation']!r}, not of {self._head['evaluation']!r}; give "
                "another folder"
            )
        was, now = head["settings"], self._head["settings"]
        differ = [
            f"{name} = {was.get(name)!r}, not {now.get(name)!r}"
            for name in sorted({*was, *now})
            if was.get(name) != now.get(name)
        ]
        if differ:
            raise EvaluationError(f"{self._path} was made with {'; '.join(differ)}; give another folder, or remove it")
        return results

    def add(self, name: str, result: Any) -> None:
        """Keep a result, and the file."""
        self.results[name] = result
        record = {**self._head, "machine": describe_machine(), "results": self.results}
        with replacing(self._path) as new:
            new.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
