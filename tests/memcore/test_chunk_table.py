from __future__ import annotations

from typing import Any

import attrs
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from memcore import chunk_table, slots
from memcore.backend_checks import all_finite
from memcore.chunk import UNKNOWN_TOKEN, ChunkBatch
from memcore.chunk_table import ChunkTable
from memcore.errors import BackendError, UnknownChunkError
from memcore.reserved import reserve, takes_memory_late
from memcore.testing import assert_same_chunks, make_chunks, select


def chunk_bytes(chunks: ChunkBatch) -> int:
    return sum(tensor.nbytes for tensor in attrs.asdict(chunks, recurse=False).values())


def row_in_block(table: ChunkTable, id: int) -> torch.Tensor:
    """Return the keys of a chunk as they lie in the table, not a copy."""
    slot = int(table._columns["slots"][int(table.rows(torch.tensor([id])))])
    return table._payload._blocks[slot // table._payload._per_block]["keys"][slot % table._payload._per_block]


@given(data=st.data())
def test_any_sequence_of_changes_keeps_every_chunk_in_blocks_of_any_size(data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunk_table, "_RESERVED_BYTES", data.draw(st.sampled_from([1, 100, 1 << 20])))
        if data.draw(st.booleans()):
            for module in (slots, chunk_table):
                patch.setattr(module, "takes_memory_late", lambda device: False)
        patch.setattr(slots, "_BLOCK_BYTES", data.draw(st.sampled_from([1, 400, 1000, 5000])))
        table = ChunkTable()
        held: dict[int, ChunkBatch] = {}
        for step in range(data.draw(st.integers(1, 12))):
            remove: bool = data.draw(st.booleans())
            if held and remove:
                gone = data.draw(st.lists(st.sampled_from(sorted(held)), unique=True, min_size=1))
                assert table.remove(torch.tensor(gone)).tolist() == sorted(gone)
                for id in gone:
                    del held[id]
            else:
                batch = make_chunks(data.draw(st.integers(0, 6)), seed=step, width=data.draw(st.integers(1, 4)))
                for place, id in enumerate(table.add(batch).tolist()):
                    held[id] = select(batch, slice(place, place + 1))
            if data.draw(st.booleans()):
                table = table.copy()
            ids = data.draw(st.lists(st.sampled_from(sorted(held)), max_size=8)) if held else []
            taken = table.take(torch.tensor(ids, dtype=torch.int64))
            for place, id in enumerate(ids):
                assert_same_chunks(select(taken, slice(place, place + 1)), held[id])
            assert table.ids.tolist() == sorted(held)


def test_padding_holds_no_numbers_left_from_others() -> None:
    table = ChunkTable()
    wide = make_chunks(4, width=6)
    table.remove(table.add(attrs.evolve(wide, keys=torch.full_like(wide.keys, torch.nan))))
    narrow = make_chunks(5, width=2, seed=1)
    taken = table.take(table.add(narrow))
    assert taken.keys.shape[2] == 6
    assert not bool(taken.keys[:, :, 2:].any())
    assert not bool(taken.values[:, :, 2:].any())
    assert bool((taken.token_ids[:, 2:] == UNKNOWN_TOKEN).all())


def test_a_removed_chunk_leaves_its_slot_to_the_next() -> None:
    table = ChunkTable()
    ids = table.add(make_chunks(8))
    left = row_in_block(table, int(ids[3])).data_ptr()
    table.remove(ids[3:4])
    assert row_in_block(table, int(table.add(make_chunks(1, seed=1))[0])).data_ptr() == left


def test_payloads_stay_in_place_while_chunks_come_and_go() -> None:
    table = ChunkTable()
    ids = table.add(make_chunks(8))
    before = row_in_block(table, int(ids[7])).data_ptr()
    table.remove(ids[:7])
    table.add(make_chunks(7, seed=1))
    assert row_in_block(table, int(ids[7])).data_ptr() == before


@pytest.mark.parametrize("width", [3, 9], ids=["as wide", "wider"])
@pytest.mark.parametrize("allocations", range(8))
def test_a_failed_growth_changes_nothing(monkeypatch: pytest.MonkeyPatch, allocations: int, width: int) -> None:
    monkeypatch.setattr(slots, "_BLOCK_BYTES", 1)
    monkeypatch.setattr(chunk_table, "_RESERVED_BYTES", 1)
    table = ChunkTable()
    chunks = make_chunks(2)
    ids = table.add(chunks)
    calls = iter(range(100))

    def run_out(shape: Any, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        if next(calls) == allocations:
            raise torch.OutOfMemoryError("no memory left")
        return reserve(shape, dtype, device)

    with monkeypatch.context() as patch:
        for module in (slots, chunk_table):
            patch.setattr(module, "reserve", run_out)
        with pytest.raises(torch.OutOfMemoryError):
            table.add(make_chunks(5, width=width))
    assert_same_chunks(table.take(ids), chunks)
    assert table.add(make_chunks(1)).tolist() == [2]


@pytest.mark.skipif(not takes_memory_late(torch.device("cpu")), reason="memory is taken before it is written to here")
def test_room_that_is_not_used_takes_no_memory() -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    tables = [ChunkTable() for _ in range(20)]
    for table in tables:
        table.add(make_chunks(1))
    assert process.memory_info().rss - before < 20 << 20  # each has room for more than 100 MB


def test_large_columns_hold_what_is_written_to_them() -> None:
    column = reserve((3, 1 << 20), torch.float32, torch.device("cpu"))
    assert column.shape == (3, 1 << 20)
    column[2] = torch.arange(1 << 20, dtype=torch.float32)
    view = column[2]
    del column
    assert torch.equal(view, torch.arange(1 << 20, dtype=torch.float32))


@pytest.mark.skipif(not takes_memory_late(torch.device("cpu")), reason="the allocator says it in its own way here")
def test_too_much_memory_is_refused() -> None:
    with pytest.raises(BackendError, match="reserve"):
        reserve((1 << 60,), torch.uint8, torch.device("cpu"))


def test_bytes_are_those_of_the_chunks_held() -> None:
    table = ChunkTable()
    chunks = make_chunks(5)
    ids = table.add(chunks)
    assert table.nbytes == chunk_bytes(chunks)
    table.remove(ids[:2])
    assert table.nbytes == chunk_bytes(chunks) * 3 // 5


def test_int8_takes_a_bit_more_than_half_of_half_precision() -> None:
    chunks = make_chunks(6, heads=2, width=64, key_size=128, value_size=128, dtype=torch.bfloat16)
    sizes = {}
    for table in (ChunkTable(), ChunkTable(compression="int8")):
        table.add(chunks)
        sizes[table.compression] = table.nbytes
    assert 0.5 < sizes["int8"] / sizes["none"] < 0.57


def test_int8_refuses_what_is_not_finite_and_changes_nothing() -> None:
    table = ChunkTable(compression="int8")
    chunks = make_chunks(3)
    ids = table.add(chunks)
    bad = make_chunks(2, width=7)
    bad.values[1, 0, 0, 0] = torch.inf
    with pytest.raises(BackendError, match="finite values"):
        table.add(bad)
    assert table.ids.tolist() == ids.tolist()
    assert table.take(ids).keys.shape == chunks.keys.shape


def test_an_unknown_id_is_named_in_an_empty_table_too() -> None:
    table = ChunkTable()
    table.remove(table.add(make_chunks(2)))
    with pytest.raises(UnknownChunkError, match="1"):
        table.take(torch.tensor([1]))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_one_number_that_is_not_finite_is_noticed(bad: float) -> None:
    tensor = torch.ones(3, 5)
    tensor[1, 2] = bad
    assert not all_finite(tensor)


def test_finite_numbers_whose_sum_is_not_are_finite() -> None:
    assert all_finite(torch.full((4,), 3e38))
    assert all_finite(torch.tensor([3e38, 3e38, -3e38]))
    assert all_finite(torch.empty(0))


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_memory_cannot_be_pinned_without_cuda() -> None:
    assert not ChunkTable().pin_memory
    with pytest.raises(BackendError, match="CUDA"):
        ChunkTable(pin_memory=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("compression", ["none", "int8"])
def test_taken_payloads_are_pinned_where_cuda_is(compression: str) -> None:
    chunks = make_chunks(3)
    for pin_memory in (None, True, False):
        table = ChunkTable(compression=compression, pin_memory=pin_memory)  # type: ignore[arg-type]
        taken = table.take(table.add(chunks))
        assert taken.keys.is_pinned() == taken.values.is_pinned() == (pin_memory is not False)
    on_gpu = ChunkTable("cuda")
    assert on_gpu.take(on_gpu.add(chunks)).keys.is_cuda
