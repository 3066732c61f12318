"""Bodies of requests to ``memcore serve``."""

from __future__ import annotations

from contextlib import suppress

from fuzz.target import Target, refused
from memcore.files import parse_json
from memcore.serving.requests import ask_request, chat_request, whole_number


class Requests(Target):
    """Reads bytes as a question, as a chat, and as a number of an address."""

    def seeds(self) -> list[bytes]:
        """Return one of each."""
        return [
            b'{"session": "novel", "question": "Who?", "max_new_tokens": 8, "temperature": 0.5, "seed": 3}',
            b'{"model": "m", "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": '
            b'[{"type": "text", "text": "x"}]}], "stream": true, "stop": ["a"], "stream_options": {}}',
            b"17",
        ]

    def read(self, data: bytes) -> None:
        """Read bytes in every way."""
        refused(lambda: whole_number(data.decode(errors="replace"), "from"))
        values: object = None
        with suppress(ValueError):  # which the server makes an answer of
            values = parse_json(data)
        if isinstance(values, dict):
            refused(lambda: ask_request(values))
            refused(lambda: chat_request(values))
