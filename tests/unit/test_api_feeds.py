"""What a feed tells watchers of different pace."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from celora.api import feeds
from celora.api.feeds import Feed, Told, Watch
from models.queries.following import News, Place
from models.tables import Job


def told(number: int, *, over: bool = False) -> Told:
    """News number `number`, which one has to have seen `number - 1` for."""
    news = News(Job(id="ftjob-1"), Place(event=(number, 1)), over=over)
    return Told(Place(event=(number - 1, 1)), news, (b"%d" % number,), b"")


def watch(act: Callable[[Feed], None], place: Place, *, most: int) -> list[int]:
    """Numbers that a watcher from `place` gets, of the feed that `act` has filled."""

    async def all_of_it() -> list[int]:
        feed = Feed(Place(event=(0, 1)))
        act(feed)
        got: list[int] = []
        async for one in feed.after(place, Watch("key_1")):
            got.append(one.news.after.event[0])
            if len(got) == most:
                break
        return got

    return asyncio.run(all_of_it())


def fill(count: int, *, over: bool = False) -> Callable[[Feed], None]:
    def act(feed: Feed) -> None:
        for number in range(1, count + 1):
            feed.publish(told(number, over=over and number == count))

    return act


def test_it_ends_with_the_job() -> None:
    assert watch(fill(3, over=True), Place(event=(0, 1)), most=9) == [1, 2, 3]


def test_who_is_too_far_behind_is_sent_to_the_tables() -> None:
    count = feeds._KEPT + 1
    assert watch(fill(count), Place(event=(0, 1)), most=9) == []
    assert watch(fill(count), Place(event=(1, 1)), most=3) == [2, 3, 4]


def test_who_becomes_too_slow_is_sent_there_as_well() -> None:
    async def slow() -> list[int]:
        feed = Feed(Place(event=(0, 1)))
        fill(2)(feed)
        got: list[int] = []
        async for one in feed.after(Place(event=(0, 1)), Watch("key_1")):
            got.append(one.news.after.event[0])
            if len(got) == 2:  # while it is busy more comes than the feed keeps
                for number in range(3, feeds._KEPT + 4):
                    feed.publish(told(number))
        return got

    assert asyncio.run(slow()) == [1, 2]


def test_a_waiting_watcher_is_woken() -> None:
    async def waiting() -> list[Any]:
        feed = Feed(Place(event=(0, 1)))
        loop = asyncio.get_running_loop()
        loop.call_later(0.01, feed.publish, told(1))
        loop.call_later(0.02, feed.publish, told(2, over=True))
        return [
            one.news.after.event[0] async for one in feed.after(Place(event=(0, 1)), Watch("key_1"))
        ]

    assert asyncio.run(waiting()) == [1, 2]


def test_messages_are_made_once_for_those_in_step() -> None:
    one = told(2)
    assert one.messages_after(Place(event=(1, 1))) is one.messages
    assert list(one.messages_after(Place(event=(0, 1)))) == []  # of the news itself: none
