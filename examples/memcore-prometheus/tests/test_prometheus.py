"""The plugin on a tiny model: what Prometheus would scrape, over HTTP."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from memcore_prometheus import Metrics, plugin, serve
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from transformers import LlamaConfig, LlamaForCausalLM

import memcore
from memcore.plugins import registry

SETTINGS: dict[str, Any] = {"window": 32, "sinks": 2, "chunk_size": 4, "top_k": 3, "rerank": 6, "query_tokens": 4}
CAPACITY = 80
"""Tokens, of which a prompt of 150 leaves some behind."""


@pytest.fixture
def scraped(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A function that fetches the metrics of the plugin, which is at work meanwhile with metrics of its own."""
    own, manager = CollectorRegistry(), registry().manager
    monkeypatch.setattr(plugin, "METRICS", Metrics(own))
    if not (installed := manager.is_registered(plugin)):
        manager.register(plugin, "prometheus")
    server = serve("0", own)
    port = server.server_port

    def scrape() -> dict[str, dict[str, float]]:
        """Return the value for each backend of each sample, by its name; of a bucket only the last, which has all."""
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            text = answer.read().decode()
        found: dict[str, dict[str, float]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                assert set(sample.labels) <= {"backend", "le"}
                found.setdefault(sample.name, {})[sample.labels["backend"]] = sample.value
        return found

    yield scrape
    server.shutdown()
    server.server_close()
    if not installed:
        manager.unregister(plugin)


def model() -> Any:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(num_attention_heads=2, **shape)).eval()


def prompt(length: int = 150) -> torch.Tensor:
    return torch.randint(2, 97, (1, length), generator=torch.Generator().manual_seed(1))


def test_what_a_model_remembers_is_scraped(scraped: Any) -> None:
    wrapped: Any = memcore.wrap(model(), capacity=CAPACITY, **SETTINGS)
    cache = wrapped.memory.new_cache()
    wrapped.generate(prompt(), past_key_values=cache, max_new_tokens=4, do_sample=False)
    found = scraped()
    bank = wrapped.memory.bank
    names = bank.namespaces()
    assert len(names) == 2
    held = sum(bank.count(name) for name in names)
    stored = sum(bank.next_id(name) for name in names)
    assert found["memcore_chunks_stored_total"] == {"exact": stored}
    assert found["memcore_chunks_evicted_total"] == {"exact": stored - held}
    assert stored > held
    assert found["memcore_chunks"] == {"exact": held}
    assert found["memcore_bytes"] == {"exact": bank.nbytes()}
    assert found["memcore_memories"] == {"exact": 1}
    one = bank.fetch(names[0], bank.ids(names[0])[:1])
    size = one.embeddings.nbytes + one.keys.nbytes + one.values.nbytes
    assert found["memcore_stored_bytes_total"] == {"exact": stored * size}
    assert found["memcore_retrieved_bytes_total"] == {"exact": found["memcore_chunks_retrieved_total"]["exact"] * size}
    retrievals = found["memcore_retrieve_seconds_count"]["exact"]
    assert 0 < found["memcore_searches_total"]["exact"] <= retrievals
    assert found["memcore_chunks_retrieved_total"]["exact"] <= 3 * retrievals
    for what in ("store", "retrieve", "evict"):
        assert found[f"memcore_{what}_seconds_sum"]["exact"] > 0
        assert found[f"memcore_{what}_seconds_bucket"] == found[f"memcore_{what}_seconds_count"]


def test_a_memory_that_was_closed_holds_nothing_and_its_counts_stay(scraped: Any) -> None:
    wrapped: Any = memcore.wrap(model(), **SETTINGS)
    wrapped.generate(prompt(), max_new_tokens=1)
    memcore.unwrap(wrapped)
    found = scraped()
    assert found["memcore_chunks_stored_total"]["exact"] > 0
    assert "memcore_chunks" not in found
    assert "memcore_memories" not in found


def test_it_is_served_to_this_machine_only_unless_an_address_is_given(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="memcore"):
        for where, address in (("0", "127.0.0.1"), ("0.0.0.0:0", "0.0.0.0")):
            server = serve(where, CollectorRegistry())
            assert server.server_address == (address, server.server_port)
            assert caplog.messages[-1] == f"metrics are at http://{address}:{server.server_port}/metrics"
            server.shutdown()
            server.server_close()


def test_nothing_is_served_unless_the_variable_says_so_and_a_port_that_is_taken_is_no_failure() -> None:
    code = "import logging; logging.basicConfig(level='INFO'); import memcore_prometheus"
    here = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    here.pop(plugin.ENVIRONMENT, None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for variables, says in (
            ({}, ""),
            ({plugin.ENVIRONMENT: "0"}, "INFO:memcore.prometheus:metrics are at http://127.0.0.1:"),
            ({plugin.ENVIRONMENT: port}, "WARNING:memcore.prometheus:MEMCORE_PROMETHEUS cannot be served: "),
            ({plugin.ENVIRONMENT: "nowhere"}, "WARNING:memcore.prometheus:MEMCORE_PROMETHEUS cannot be served: "),
        ):
            done = subprocess.run(
                [sys.executable, "-c", code], env={**here, **variables}, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
            assert done.stderr.startswith(says)
            assert bool(done.stderr) == bool(says)
