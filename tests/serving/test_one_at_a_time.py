"""Requests take turns, and one that nobody waits for gives its turn up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from memcore.errors import UnsupportedInputError
from memcore.serving.errors import RequestError
from memcore.serving.one_at_a_time import OneAtATime, StoppedError

Tell = Callable[[Any], None]


async def everything(queue: OneAtATime, work: Any) -> list[Any]:
    return [result async for result in queue.run(work)]


def test_one_is_served_at_a_time_in_the_order_they_came() -> None:
    seen: list[str] = []

    def work(name: str) -> Any:
        def do(tell: Tell, stopped: threading.Event) -> None:
            seen.append(f"{name} begins")
            tell(1)
            tell(2)
            seen.append(f"{name} ends")

        return do

    async def main() -> list[list[Any]]:
        queue = OneAtATime()
        results = await asyncio.gather(*(everything(queue, work(name)) for name in "abc"))
        queue.close()
        return results

    assert asyncio.run(main()) == [[1, 2]] * 3
    assert seen == [f"{name} {what}" for name in "abc" for what in ("begins", "ends")]


def test_what_the_work_raises_is_raised_after_what_it_told() -> None:
    def work(tell: Tell, stopped: threading.Event) -> None:
        tell("first")
        raise UnsupportedInputError("no")

    async def main() -> None:
        results = OneAtATime().run(work)
        assert await anext(results) == "first"
        with pytest.raises(UnsupportedInputError, match="no"):
            await anext(results)

    asyncio.run(main())


def test_work_is_told_to_stop_when_its_listener_goes_and_the_next_has_its_turn() -> None:
    def endless(tell: Tell, stopped: threading.Event) -> None:
        tell("begun")
        assert stopped.wait(30)
        raise StoppedError("stopped")

    async def main() -> list[Any]:
        queue = OneAtATime()
        results = queue.run(endless)
        assert await anext(results) == "begun"
        await results.aclose()
        return await everything(queue, lambda tell, _: tell("next"))

    assert asyncio.run(main()) == ["next"]


def test_work_that_nobody_waits_for_is_not_begun() -> None:
    begun: list[str] = []
    release = threading.Event()

    async def main() -> None:
        queue = OneAtATime()

        def first(tell: Tell, stopped: threading.Event) -> None:
            tell("begun")
            assert release.wait(30)

        running = queue.run(first)
        await anext(running)
        waiting = asyncio.ensure_future(everything(queue, lambda tell, _: begun.append("second")))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        release.set()
        assert await everything(queue, lambda tell, _: tell("third")) == ["third"]

    asyncio.run(main())
    assert not begun


def test_more_than_may_wait_are_refused_until_there_is_room() -> None:
    release = threading.Event()

    def held(tell: Tell, stopped: threading.Event) -> None:
        tell("begun")
        assert release.wait(30)

    async def main() -> None:
        queue = OneAtATime(waiting=1)
        first, second = queue.run(held), asyncio.ensure_future(everything(queue, held))
        await anext(first)
        with pytest.raises(RequestError, match="try again later") as refused:
            await everything(queue, held)
        assert refused.value.status == 503
        release.set()
        await second
        assert await everything(queue, lambda tell, _: tell("served")) == ["served"]

    asyncio.run(main())


def test_when_it_is_to_end_work_stops_and_what_waits_is_given_up() -> None:
    def endless(tell: Tell, stopped: threading.Event) -> None:
        tell("begun")
        assert stopped.wait(30)
        tell("as far as it came")

    async def main() -> None:
        queue = OneAtATime()
        running = queue.run(endless)
        assert await anext(running) == "begun"
        waiting = asyncio.ensure_future(everything(queue, endless))
        await asyncio.sleep(0)
        queue.stop()
        assert [result async for result in running] == ["as far as it came"]
        for given_up in (waiting, everything(queue, endless)):
            with pytest.raises(RequestError, match="about to end") as refused:
                await given_up
            assert refused.value.status == 503
        queue.close()

    asyncio.run(main())
