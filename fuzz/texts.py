"""Files that evaluations and trainings read: questions, labelled texts, results, logs, descriptions of weights."""

from __future__ import annotations

import torch
from safetensors.torch import save_file

from fuzz.target import Target, refused
from memcore.cli.settings import memory_config
from memcore.errors import MemcoreError
from memcore.evaluation.labelled_texts import read_examples
from memcore.evaluation.questions import read_questions
from memcore.evaluation.record import Record
from memcore.files import read_text
from memcore.training.documents import read_documents
from memcore.training.log import TrainingLog
from memcore.training.saved import DESCRIPTION, WEIGHTS, _read


class Texts(Target):
    """Reads a file as each kind."""

    def seeds(self) -> list[bytes]:
        """Return one of each kind."""
        return [
            b'{"question": "Who?", "answer": ["He"], "options": ["He", "She"]}\n{"question": "?", "answer": "I"}',
            b'text,label\n"a, b",1\nc,0\n',
            b"text\tlabel\na\t1\n",
            b'{"evaluation": "ppl", "settings": {"tokens": 3}, "results": {"full": {"loss": 1.0}}}',
            b'{"stage": "one", "step": 3, "loss": 0.5}\n{"stage": "one", "step": 4, "eval_loss": 0.25}\n',
            b'{"format": 1, "memcore": "", "model": "", "frozen": "", "memory": null, "plans": [{"lora_rank": 2}]}',
        ]

    def read(self, data: bytes) -> None:
        """Read a file in every way."""
        files = {name: self.folder / name for name in ("a.csv", "a.tsv", "a.json", "a.jsonl", DESCRIPTION)}
        for file in files.values():
            file.write_bytes(data)
        refused(lambda: read_examples(files["a.csv"]))
        refused(lambda: read_examples(files["a.tsv"], columns=("label", "text")))
        refused(lambda: read_questions(files["a.jsonl"]))
        refused(lambda: Record(files["a.json"], "ppl", {"tokens": 3}))
        refused(lambda: read_text(files["a.json"]))
        refused(lambda: read_documents([str(files["a.json"])]))
        refused(lambda: memory_config("", [f"window={data.decode(errors='replace')}"]))
        try:
            log = TrainingLog(files["a.jsonl"])
            log.rewind("one", 3)
            log.values("one", "loss")
        except MemcoreError:
            pass
        weights = self.folder / WEIGHTS
        save_file({"q.lora_A.weight": torch.zeros(2, 4)}, weights)
        refused(lambda: _read(self.folder))
        weights.write_bytes(data)
        refused(lambda: _read(self.folder))
