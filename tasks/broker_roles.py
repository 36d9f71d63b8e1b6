"""What each role may do on RabbitMQ: the narrowest permissions with which it works.

RabbitMQ grants by regular expressions on the names of queues and exchanges: `configure` to declare,
`write` to publish or to bind a queue, `read` to consume or to bind to an exchange
(https://www.rabbitmq.com/docs/access-control). A queue and the
exchange in front of it share a name, so who may declare and bind a queue may also read it. That is
why the dispatcher, whose tickets these are, could; nobody else can read another one's queue.

    role         does                                              consumes
    dispatcher   declares the queues of tickets, publishes tickets nothing
    cpu          prepares data, takes jobs, answers their callers  celora.cpu…, celery
    gpu          trains on the devices of one host, or of any      the queues of those devices
    client       hands in jobs over the broker                     its own answers; celery
    flower       watches, and terminates                           events, and replies to itself
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from dataclasses import dataclass

from tasks.names import CPU_QUEUE, DEFAULT_QUEUE, cpu_worker, gpu_queue

# Celery's own: the exchange of remote control, the one of the answers to it, the one of events.
_CONTROL, _REPLIES, _EVENTS = r"celery\.pidbox", r"reply\.celery\.pidbox", "celeryev"
# Tickets and answers go straight to a queue, through the default exchange, whose routing keys
# RabbitMQ does not check: who may publish there may publish to any queue. A ticket that the
# dispatcher did not make is dropped by the claim.
_DIRECT = r"amq\.default"
# celora.cpu, and that of any version: see CPU_QUEUES.
_PREPARATION = rf"{re.escape(CPU_QUEUE)}(\.\d+)*"
# A queue with a random name, of a process that waits for answers.
_ANSWERS = r"[0-9a-f-]{36}(\.reply\.celery\.pidbox)?"


@dataclass(frozen=True, slots=True)
class Permission:
    """Three regular expressions; an empty one allows nothing."""

    configure: str = ""
    write: str = ""
    read: str = ""

    def record(self) -> dict[str, str]:
        return {
            "configure": self.configure or "^$",
            "write": self.write or "^$",
            "read": self.read or "^$",
        }


def dispatcher() -> Permission:
    tickets = (DEFAULT_QUEUE, _PREPARATION, r"celora\.gpu\..+")
    return Permission(configure=_any(*tickets), write=_any(*tickets, _DIRECT), read=_any(*tickets))


def cpu() -> Permission:
    return _worker(cpu_worker(".+"), _PREPARATION, DEFAULT_QUEUE)


def gpu(host: str) -> Permission:
    """For all devices of one host: a worker of another host cannot take their tickets."""
    queue = re.escape(gpu_queue(host, 0)).removesuffix("0") + r"\d+"
    return _worker(rf"gpu\d+@{re.escape(host)}", queue)


def gpu_of_any_host() -> Permission:
    """For the devices of all hosts, where hosts come and go, as a cluster's pods do."""
    return _worker(r"gpu\d+@.+", r"celora\.gpu\..+")


def client() -> Permission:
    """Hands in to Celery's default queue, which it declares: `send_task` without a queue."""
    own = (DEFAULT_QUEUE, _ANSWERS)
    return Permission(configure=_any(*own), write=_any(*own, _DIRECT), read=_any(*own))


def flower() -> Permission:
    own = (r"celeryev\..+", _ANSWERS)
    return Permission(
        configure=_any(_CONTROL, _REPLIES, _EVENTS, *own),
        write=_any(_CONTROL, *own),
        read=_any(_REPLIES, _EVENTS, *own),
    )


def definitions(vhost: str, users: dict[str, tuple[str, Permission]]) -> dict[str, object]:
    """What RabbitMQ loads (`load_definitions`, `rabbitmqctl import_definitions`).

    `users`: name → password and permission. Loading it again brings passwords and permissions up to
    date; it takes nothing away that it does not name.
    """
    return {
        "vhosts": [{"name": vhost}],
        "users": [
            {
                "name": name,
                "password_hash": password_hash(password),
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": [],
            }
            for name, (password, _) in users.items()
        ],
        "permissions": [
            {"user": name, "vhost": vhost} | permission.record()
            for name, (_, permission) in users.items()
        ],
    }


def password_hash(password: str) -> str:
    """As RabbitMQ keeps it: four bytes of salt, and SHA-256 of salt and password, in base64.

    https://www.rabbitmq.com/docs/passwords#computing-password-hash
    """
    salt = secrets.token_bytes(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def _worker(name: str, *queues: str) -> Permission:
    inbox = rf"{name}\.celery\.pidbox"
    return Permission(
        configure=_any(*queues, inbox, _CONTROL, _REPLIES, _EVENTS),
        write=_any(*queues, inbox, _REPLIES, _EVENTS, _DIRECT),
        read=_any(*queues, inbox, _CONTROL),
    )


def _any(*names: str) -> str:
    return f"^({'|'.join(names)})$"
