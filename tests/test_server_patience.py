"""How long the server waits for what clients send: one timer for all waits."""

from __future__ import annotations

import asyncio

import pytest

from modelpack.server.patience import Patience


async def given(value, after):
    await asyncio.sleep(after)
    return value


def test_what_comes_in_time_is_given_and_what_does_not_ends_each_after_its_own_time():
    async def scene():
        patience, loop = Patience(0.2), asyncio.get_running_loop()
        assert await patience.wait(given("soon", 0)) == "soon"

        async def late(begin):
            await asyncio.sleep(begin)
            began = loop.time()
            with pytest.raises(TimeoutError):
                await patience.wait(given("never", 30))
            return loop.time() - began

        waited = await asyncio.gather(*(late(begin) for begin in (0, 0.1, 0.5)), patience.wait(given("soon", 0.01)))
        assert waited.pop() == "soon"
        assert all(0.19 <= seconds < 10 for seconds in waited), waited
        assert await patience.wait(given("again", 0)) == "again"

    asyncio.run(scene())


def test_who_is_cancelled_by_another_is_cancelled():
    async def scene():
        task = asyncio.ensure_future(Patience(30).wait(given("never", 30)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    asyncio.run(scene())


def test_a_task_that_was_too_late_goes_on_as_if_nobody_had_cancelled_it():
    async def scene():
        with pytest.raises(TimeoutError):
            await Patience(0.01).wait(given("never", 30))
        assert asyncio.current_task().cancelling() == 0
        async with asyncio.timeout(30):
            assert await given("more", 0.01) == "more"

    asyncio.run(scene())
