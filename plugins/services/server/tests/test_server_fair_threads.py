"""Threads that clients share: nobody waits behind all of another one's work."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from typing import Any

import pytest
from finetooth_server.limits.fair_threads import CLIENT, FairThreads


def asked(threads: FairThreads, client: str, do: Any) -> Future[Any]:
    token = CLIENT.set(client)
    try:
        return threads.submit(do)
    finally:
        CLIENT.reset(token)


def test_who_comes_behind_many_of_another_client_is_next() -> None:
    """One thread, held until all have come."""
    done: list[str] = []
    gate = threading.Event()
    with FairThreads(1, 1) as threads:
        found = [asked(threads, "many", gate.wait)]
        found += [asked(threads, "many", lambda n=n: done.append(f"many{n}")) for n in range(20)]
        found += [asked(threads, "one", lambda n=n: done.append(f"one{n}")) for n in range(2)]
        gate.set()
        for one in found:
            one.result()
    assert done[:4] == ["one0", "many0", "one1", "many1"] or done[:4] == ["many0", "one0", "many1", "one1"]
    assert [name for name in done if name.startswith("many")] == [f"many{n}" for n in range(20)]


def test_a_client_has_its_share_of_the_threads_and_the_others_are_free() -> None:
    """Work of one client that does not end leaves threads to another one's, and is done when it may go on."""
    gate, begun = threading.Event(), threading.Semaphore(0)

    def held() -> bool:
        begun.release()
        return gate.wait()

    with FairThreads(4, 2) as threads:
        found = [asked(threads, "many", held) for _ in range(10)]
        for _ in range(2):
            begun.acquire()
        assert asked(threads, "one", lambda: 5).result() == 5
        assert not begun.acquire(blocking=False)  # no third one began
        gate.set()
        assert all(one.result() for one in found)


def test_what_fails_fails_for_who_asked_and_what_was_cancelled_is_left_out() -> None:
    gate, done = threading.Event(), list[int]()
    with FairThreads(1, 1) as threads:
        asked(threads, "a", gate.wait)
        fails = asked(threads, "a", lambda: 1 // 0)
        dropped = asked(threads, "a", lambda: done.append(1))
        assert dropped.cancel()
        gate.set()
        with pytest.raises(ZeroDivisionError):
            fails.result()
        assert asked(threads, "a", lambda: 7).result() == 7
    assert not done


def test_a_loop_takes_it_and_tasks_keep_their_client() -> None:
    async def work() -> list[str]:
        asyncio.get_running_loop().set_default_executor(FairThreads())

        async def one(name: str) -> str:
            CLIENT.set(name)
            return await asyncio.to_thread(CLIENT.get)

        return list(await asyncio.gather(*(one(f"client{n}") for n in range(20))))

    assert asyncio.run(work()) == [f"client{n}" for n in range(20)]
