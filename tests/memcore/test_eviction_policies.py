from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from memcore.eviction import ChunkUsage, EvictionPolicy
from memcore.eviction_policies import FifoEviction, LfuEviction, LruEviction, MemLongEviction, MemLongOptions

POLICIES = [FifoEviction(), LruEviction(), LfuEviction(), MemLongEviction()]


def usage(
    count: int, *, last_used: list[int] | None = None, retrievals: list[int] | None = None, first_id: int = 0
) -> ChunkUsage:
    return ChunkUsage(
        ids=torch.arange(first_id, first_id + count),
        last_used=torch.tensor(last_used if last_used is not None else [0] * count),
        retrievals=torch.tensor(retrievals if retrievals is not None else [0] * count),
    )


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
@given(data=st.data(), capacity=st.integers(1, 40), excess=st.integers(1, 60))
def test_every_policy_makes_room(policy: EvictionPolicy, data: st.DataObject, capacity: int, excess: int) -> None:
    count = capacity + excess
    numbers = st.lists(st.integers(0, 9), min_size=count, max_size=count)
    known = usage(count, last_used=data.draw(numbers), retrievals=data.draw(numbers), first_id=17)
    gone = policy.select(known, capacity)
    assert gone.dtype == torch.int64
    assert len(set(gone.tolist())) == len(gone)
    assert set(gone.tolist()) <= set(known.ids.tolist())
    assert excess <= len(gone) < count


def test_fifo_drops_the_oldest() -> None:
    assert FifoEviction().select(usage(5, first_id=3), 3).tolist() == [3, 4]


def test_lru_drops_what_was_used_longest_ago_and_the_oldest_of_equals() -> None:
    assert LruEviction().select(usage(5, last_used=[9, 2, 8, 2, 1]), 3).tolist() == [1, 4]


def test_lfu_drops_what_was_retrieved_least_and_the_oldest_of_equals() -> None:
    assert LfuEviction().select(usage(5, retrievals=[3, 1, 7, 0, 1]), 3).tolist() == [1, 3]


def rule_of_the_paper(retrievals: list[int], capacity: int) -> list[int]:
    """Return the ages of the chunks that the rule drops, step by step as the paper words it."""
    count = len(retrievals)
    ages = list(range(count))  # 0 is the oldest
    dropped, middle, newest = ages[: count // 10], ages[count // 10 : count - count // 10], ages[count - count // 10 :]
    while middle and 2 * (len(middle) + len(newest) - 1) >= capacity:  # one less is still half the capacity
        least = min(middle, key=lambda age: (retrievals[age], age))
        middle.remove(least)
        dropped.append(least)
    return sorted(dropped)


@given(data=st.data(), capacity=st.integers(1, 60), excess=st.integers(1, 40))
def test_memlong_is_the_rule_of_the_paper(data: st.DataObject, capacity: int, excess: int) -> None:
    count = capacity + excess
    retrievals = data.draw(st.lists(st.integers(0, 5), min_size=count, max_size=count))
    gone = MemLongEviction().select(usage(count, retrievals=retrievals, first_id=100), capacity)
    want = [100 + age for age in rule_of_the_paper(retrievals, capacity)]
    if count - len(want) > capacity:
        # The newest tenth alone is too many, of which the paper does not speak: its oldest have to go as well.
        want += range(100 + len(want), 100 + count - capacity)
    assert gone.tolist() == want


@pytest.mark.parametrize("count", [10, 70, 130, 1000, 2890, 10_000, 123_450])
def test_a_tenth_is_not_lost_to_rounding(count: int) -> None:
    gone = MemLongEviction().select(usage(count, retrievals=list(range(count))), count - 1)
    assert count - len(gone) == -(-(count - 1) // 2)
    high_first = usage(count, retrievals=list(range(count, 0, -1)))
    gone = MemLongEviction().select(high_first, count - 1)
    assert gone[: count // 10].tolist() == list(range(count // 10))
    assert int(gone[-1]) == count - count // 10 - 1


def test_memlong_keeps_the_newest_tenth_and_drops_the_oldest() -> None:
    # 0 and 1 are the oldest tenth, however often they were retrieved; 18 and 19 the newest, never retrieved.
    retrievals = [99, 99, *range(1, 17), 0, 0]
    gone = MemLongEviction().select(usage(20, retrievals=retrievals), 16)
    assert gone.tolist() == list(range(12))
    assert 20 - len(gone) == 16 // 2


def test_memlong_drops_the_oldest_of_equally_retrieved() -> None:
    assert MemLongEviction().select(usage(10), 8).tolist() == [0, 1, 2, 3, 4, 5]


def test_memlong_stops_at_half_the_capacity() -> None:
    policy = MemLongEviction()
    for count in range(11, 100):
        assert count - len(policy.select(usage(count), 10)) == max(5, count // 10)


def test_memlong_drops_the_oldest_of_the_newest_when_they_alone_are_too_many() -> None:
    assert MemLongEviction().select(usage(100), 3).tolist() == list(range(97))


def test_memlong_leaves_something_of_the_smallest_capacity() -> None:
    assert MemLongEviction().select(usage(2), 1).tolist() == [0]


def test_memlong_shares_can_be_chosen() -> None:
    policy = MemLongEviction(MemLongOptions(keep_newest=0.5, drop_oldest=0.0, target=1.0))
    assert policy.select(usage(10, retrievals=[1, 0, 1, 1, 1, 0, 0, 0, 0, 0]), 9).tolist() == [1]


def test_memlong_shares_must_be_shares() -> None:
    with pytest.raises(ValueError, match="keep_newest"):
        MemLongOptions(keep_newest=10)
