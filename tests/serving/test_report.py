"""A report is one file that asks for nothing and takes no text for markup."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from pathlib import Path
from typing import Any

import attrs
import pytest
from serving_memory import MARKUP

from memcore.errors import WriteError
from memcore.options import unstructure
from memcore.serving.asking import Exchange, watching
from memcore.serving.report import ReportedSession, report, write_report
from memcore.serving.served_model import ServedModel
from memcore.session_contents import SessionContents


@pytest.fixture(scope="module")
def exchange(model: ServedModel) -> Exchange:
    session = model.session("book")
    with watching(session.model, model.tokenizer) as watch:
        answer = session.ask("</script>?", max_new_tokens=4, stopping_criteria=watch.criteria)
    return watch.exchange("</script>?", answer)


@pytest.fixture(scope="module")
def page(contents: SessionContents, exchange: Exchange) -> str:
    reported = [
        ReportedSession(session=contents.session(name), pieces=contents.text(name), exchanges=exchanges)
        for name, exchanges in (("book", [exchange]), (MARKUP, []))
    ]
    return report(reported, model="tiny", memory="<memory>")


def recorded(page: str) -> Any:
    (data,) = re.findall(r'<script type="application/json" id="recorded">(.*?)</script>', page, flags=re.DOTALL)
    return json.loads(data)


def test_a_report_holds_the_sessions_and_what_was_asked(
    page: str, contents: SessionContents, exchange: Exchange
) -> None:
    data = recorded(page)
    assert data["memory"]["model"] == "tiny"
    assert [each["name"] for each in data["memory"]["sessions"]] == ["book", MARKUP]
    book, markup = data["sessions"]
    assert book == {
        "session": contents.session("book"),
        "pieces": contents.text("book"),
        "exchanges": [json.loads(json.dumps(unstructure(exchange)))],
    }
    assert MARKUP in "".join(markup["pieces"])


def test_no_text_of_a_user_is_markup(page: str) -> None:
    assert "<img" not in page
    assert page.count("<script") == page.count("</script>") == 6
    assert "<memory>" not in page


def test_a_report_asks_for_nothing_and_runs_what_it_brings_only(page: str) -> None:
    assert "://" not in page
    markup = re.sub(r"<(script|style)([^>]*)>.*?</", r"<\1\2></", page, flags=re.DOTALL)
    assert not re.search(r'(?:src|href)="(?!data:,|#)', markup)
    (policy,) = re.findall(r'<meta http-equiv="content-security-policy" content="([^"]+)">', page)
    policy = html.unescape(policy)
    assert policy.startswith("default-src 'none'; ")
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    styles = re.findall(r"<style>(.*?)</style>", page, flags=re.DOTALL)
    for kind, inline in (("script-src", scripts), ("style-src", styles)):
        allowed = re.search(rf"{kind} ([^;]+)", policy)
        assert allowed is not None
        hashes = [base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in inline]
        assert allowed[1].split() == [f"'sha256-{each}'" for each in hashes]


def test_an_old_report_stays_if_the_new_one_cannot_be_written(tmp_path: Path, contents: SessionContents) -> None:
    path = tmp_path / "report.html"
    reported = ReportedSession(session=contents.session("book"), pieces=contents.text("book"))
    write_report(path, [reported], model=None, memory="")
    assert recorded(path.read_text(encoding="utf-8"))["sessions"][0]["exchanges"] == []
    broken = attrs.evolve(reported, pieces=["\ud800"])  # which no file in UTF-8 can hold
    before = path.read_bytes()
    with pytest.raises(UnicodeEncodeError):
        write_report(path, [broken], model=None, memory="")
    assert path.read_bytes() == before
    with pytest.raises(WriteError, match="cannot write"):
        write_report(tmp_path / "nowhere" / "report.html", [reported], model=None, memory="")
