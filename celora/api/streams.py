"""One watcher's stream: what was before it came, then what the process's feed of the job tells."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator

from starlette.concurrency import run_in_threadpool

from celora.api.feeds import Feeds, Watch
from celora.api.job_answers import job_answer
from celora.api.stream_messages import (
    end_message,
    news_messages,
    progress_data,
    progress_message,
)
from models.queries.finish import expected_finishes
from models.queries.following import News, Place, known_here, read_news
from models.session import transaction


async def told(
    feeds: Feeds, job_id: str, place: Place, watch: Watch, *, end_was_told: bool = False
) -> AsyncGenerator[bytes]:
    """Messages after `place`, until the job has ended. `end_was_told`: the last time as well; then
    none at all where nothing has happened since."""
    watcher = _Watcher(await run_in_threadpool(_here, place))
    while (news := await run_in_threadpool(_read, job_id, watcher.place)) is not None:
        if news.over and end_was_told and not news.events and not news.points:
            return
        end_was_told = False
        progress = None if news.more or news.over else progress_data(news.job)
        for message in watcher.takes(news_messages(news, watcher.place), news, progress):
            yield message
        if news.over:
            yield await run_in_threadpool(_last, news)
            return
        if news.more:
            continue
        async with feeds.joined(job_id, watcher.place, watch) as feed:
            async for one in feed.after(watcher.place, watch):
                messages = one.messages_after(watcher.place)
                for message in watcher.takes(messages, one.news, one.progress):
                    yield message
        if feed.closed or watch.ended:
            return  # without an end: another process, or another key, goes on from the last message
        # Over, or too slow for the feed: what is left is read from the tables.


class _Watcher:
    """How far one has got, and the progress that it was shown last."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._shown: bytes | None = None

    def takes(
        self, messages: Iterable[bytes], news: News, progress: bytes | None
    ) -> Iterator[bytes]:
        yield from messages
        self.place = self.place.merged(news.after)
        if progress is not None and progress != self._shown:
            self._shown = progress
            yield progress_message(progress, self.place)


def _here(place: Place) -> Place:
    with transaction() as session:
        return known_here(session, place)


def _read(job_id: str, place: Place) -> News | None:
    with transaction() as session:
        return read_news(session, {job_id: place}).get(job_id)


def _last(news: News) -> bytes:
    with transaction() as session:
        finishes = expected_finishes(session, [news.job])
    return end_message(job_answer(news.job, finishes), news.after)
