"""One reader of the database for all who watch jobs through this process.

A thread listens for what happens to jobs and reads, at once and at least every second, what is new
of all those that are watched: one connection, three statements, however many watch. Each job has a
feed with its latest news, encoded once; every watcher takes from it at its own pace, and one that
falls behind what the feed still has goes back to the tables.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic

from fastapi import FastAPI
from sse_starlette.sse import AppStatus

from celora.api.stream_messages import news_messages, progress_data
from models.errors import CeloraError
from models.queries.api_keys import living_keys
from models.queries.following import News, Place, read_news
from models.queries.history import JOB_CHANNEL
from models.queries.notify import Listener, listen
from models.session import transaction

_log = logging.getLogger(__name__)

_POLL_SECONDS = 1.0  # metrics come without a notification
_PAUSE_SECONDS = 0.2  # between two readings, however much happens
_AGAIN_SECONDS = 1.0  # after the database did not answer
_KEYS_SECONDS = 5.0  # how soon a key that was revoked opens no stream any more
_KEPT = 64  # news of a job; a slower watcher reads the tables


def feeds_of(app: FastAPI) -> Feeds:
    """The process's own; made at the first use, in the event loop."""
    if not hasattr(app.state, "feeds"):
        app.state.feeds = Feeds()
    feeds: Feeds = app.state.feeds
    return feeds


@dataclass(frozen=True, slots=True)
class Told:
    """Some news, with the messages they are for one who has seen everything before them."""

    before: Place
    news: News
    messages: tuple[bytes, ...]
    progress: bytes

    def messages_after(self, place: Place) -> Iterable[bytes]:
        if place.event == self.before.event and place.point == self.before.point:
            return self.messages
        return news_messages(self.news, place)


@dataclass(eq=False, slots=True)
class Watch:
    """One who watches, with what opened the stream to them."""

    key_id: str
    ended: bool = False  # the key is revoked or over


class Feed:
    """The latest news of one job. `tail` and `shown` are the thread's, the rest is the loop's."""

    def __init__(self, place: Place) -> None:
        self.tail = place  # how far the thread has read
        self.shown = b""  # the progress it has told last
        self.watchers: set[Watch] = set()
        self.closed = False
        self._start = place
        self._told: deque[Told] = deque(maxlen=_KEPT)
        self._count = 0  # of all that was ever told
        self._changed = asyncio.Event()

    def publish(self, told: Told) -> None:
        self._told.append(told)
        self._count += 1
        self._wake()

    def close(self) -> None:
        """The server stops, or the job is not on record any more: whoever waits goes."""
        self.closed = True
        self._wake()

    def end(self, watches: Iterable[Watch]) -> None:
        for watch in watches:
            watch.ended = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def after(self, place: Place, watch: Watch) -> AsyncIterator[Told]:
        """News as they come, for one who has seen everything up to `place`. Ends when the job is
        over, when some have been missed, or when the watch is ended."""
        seen = self._count - len(self._told)
        if not place.covers(self._told[0].before if self._told else self._start):
            return
        while True:
            changed, missed = self._changed, self._count - len(self._told)
            if seen < missed:
                return
            for told in list(self._told)[seen - missed :]:
                seen += 1
                yield told
                if told.news.over:
                    return
            if self.closed or watch.ended:
                return
            if seen == self._count:
                await changed.wait()


class Feeds:
    """The feeds of a process, and the thread that fills them while there are any."""

    def __init__(self) -> None:
        self._feeds: dict[str, Feed] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @asynccontextmanager
    async def joined(self, job_id: str, place: Place, watch: Watch) -> AsyncIterator[Feed]:
        """The job's feed, which goes on from `place` when this is its first watcher."""
        feed = self._join(job_id, place, watch)
        try:
            yield feed
        finally:
            self._leave(job_id, feed, watch)

    def _join(self, job_id: str, place: Place, watch: Watch) -> Feed:
        with self._lock:
            feed = self._feeds.setdefault(job_id, Feed(place))
            feed.watchers.add(watch)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, args=(asyncio.get_running_loop(),), name="feeds", daemon=True
                )
                self._thread.start()
            return feed

    def _leave(self, job_id: str, feed: Feed, watch: Watch) -> None:
        with self._lock:
            feed.watchers.discard(watch)
            if not feed.watchers:
                del self._feeds[job_id]

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._watched():
            try:
                with listen(JOB_CHANNEL) as listener:
                    self._follow(listener, loop)
            except CeloraError as error:
                _log.warning("watchers wait: %s", error.what)
                _sleep(_AGAIN_SECONDS)
            except Exception:  # noqa: BLE001 (whatever it is)
                if loop.is_closed():
                    return  # the server has stopped
                # Not the end: no other thread would be started, and all who watch would wait.
                _log.exception("watchers wait: the news could not be read")
                _sleep(_AGAIN_SECONDS)
            else:
                return  # nobody watches, and whoever comes next starts another thread

    def _follow(self, listener: Listener, loop: asyncio.AbstractEventLoop) -> None:
        checked = monotonic()
        while feeds := self._watched():
            if monotonic() - checked > _KEYS_SECONDS:
                self._check_keys(feeds, loop)
                checked = monotonic()
            if AppStatus.should_exit:
                for feed in feeds.values():
                    loop.call_soon_threadsafe(feed.close)
            self._read(feeds, loop)
            self._await_news(listener)
            _sleep(_PAUSE_SECONDS)

    def _check_keys(self, feeds: dict[str, Feed], loop: asyncio.AbstractEventLoop) -> None:
        """End the watches whose key is revoked or over."""
        with self._lock:
            watches = {job_id: list(feed.watchers) for job_id, feed in feeds.items()}
        with transaction() as session:
            living = living_keys(
                session, {one.key_id for watching in watches.values() for one in watching}
            )
        for job_id, watching in watches.items():
            if ended := [one for one in watching if one.key_id not in living]:
                loop.call_soon_threadsafe(feeds[job_id].end, ended)

    def _await_news(self, listener: Listener) -> None:
        """Return when something has happened to a watched job, or after a while."""
        ends = monotonic() + _POLL_SECONDS - _PAUSE_SECONDS
        while (left := ends - monotonic()) > 0:
            if any(job_id in self._feeds for job_id in listener.wait(left)):
                return

    def _read(self, feeds: dict[str, Feed], loop: asyncio.AbstractEventLoop) -> None:
        with transaction() as session:
            found = read_news(session, {job_id: feed.tail for job_id, feed in feeds.items()})
        for job_id in feeds.keys() - found.keys():
            loop.call_soon_threadsafe(feeds[job_id].close)
        for job_id, news in found.items():
            feed, progress = feeds[job_id], progress_data(news.job)
            if not (news.events or news.points or news.over) and progress == feed.shown:
                continue
            told = Told(feed.tail, news, tuple(news_messages(news, feed.tail)), progress)
            feed.tail, feed.shown = news.after, progress
            loop.call_soon_threadsafe(feed.publish, told)

    def _watched(self) -> dict[str, Feed]:
        """Copied, for watchers come and go. Where there are none the thread has to end."""
        with self._lock:
            if not self._feeds:
                self._thread = None
            return dict(self._feeds)


def _sleep(seconds: float) -> None:
    threading.Event().wait(seconds)
