"""What a caller of the HTTP API may name as data."""

from __future__ import annotations

import pytest

from celora.api.caller import Caller
from celora.api.dataset_urls import admitted
from celora.api.errors import ApiError
from tests.environment import variables

CALLER = Caller(
    tenant="team", user="ann", key_id="key_1", scopes=frozenset({"read", "submit"}), tenant_id=1
)
ROOTS = "/srv/shared, s3://team-data/sets,/srv/more/,https://data.corp/sets"


@pytest.mark.parametrize(
    ("dataset", "named"),
    [
        ("owner/name", "hub://owner/name"),
        ("gsm8k:main", "hub://gsm8k:main"),
        ("https://93.184.216.34/a.jsonl", "public+https://93.184.216.34/a.jsonl"),
        ("/srv/shared/a.jsonl", "/srv/shared/a.jsonl"),
        ("file:///srv/more/b/a.jsonl", "file:///srv/more/b/a.jsonl"),
        ("s3://team-data/sets/a.jsonl", "s3://team-data/sets/a.jsonl"),
        ("https://data.corp/sets/a%20b.jsonl", "https://data.corp/sets/a%20b.jsonl"),
    ],
)
def test_what_may_be_read(dataset: str, named: str) -> None:
    with variables(CELORA_API_DATASET_ROOTS=ROOTS):
        assert admitted(CALLER, dataset) == named


@pytest.mark.parametrize(
    "dataset",
    [
        "",
        " ",
        "/etc/passwd",
        "~/rows.jsonl",
        "./rows.jsonl",
        "../rows.jsonl",
        "file:///etc/passwd",
        "local:///etc/passwd",
        "/srv/shared/../../etc/passwd",
        "/srv/shared",
        "/srv/shared-too/a.jsonl",
        "file://srv/shared/a.jsonl",
        "s3://team-data/sets/../other/a.jsonl",
        "s3://team-data/other/a.jsonl",
        "s3a://team-data/sets/a.jsonl",
        "FILE:///etc/passwd",
        "file://file:///etc/passwd",
        "https://data.corp/sets/../a.jsonl",
        "https://data.corp/sets/%2e%2e/a.jsonl",
        "https://data.corp/sets/%252E%252e/a.jsonl",
        "https://data.corp/sets/..\\a.jsonl",
        "https://data.corp@93.184.216.34/sets/a.jsonl",
        "s3://others/a.jsonl",
        "simplecache::s3://team-data/sets/a.jsonl",
        "https://93.184.216.34/a.zip::file:///etc/passwd",
        "http://93.184.216.34/a.jsonl",
        "https://user:password@93.184.216.34/a.jsonl",
        "https://127.0.0.1/a.jsonl",
        "https://localhost/a.jsonl",
        "https://169.254.169.254/latest/meta-data",
        "https://[::1]/a.jsonl",
        "https://[::ffff:10.0.0.1]/a.jsonl",
        "https://192.168.1.1/a.jsonl",
        "https://[bad/a.jsonl",
        "public+https://93.184.216.34/a.jsonl",
        "hub://owner/name",
        "memory://a.jsonl",
        "ftp://93.184.216.34/a.jsonl",
        "gopher://93.184.216.34/",
        "owner/name\nx",
        "a" * 3000,
    ],
)
def test_what_may_not(dataset: str) -> None:
    with (
        variables(CELORA_API_DATASET_ROOTS=ROOTS),
        pytest.raises(ApiError) as caught,
    ):
        admitted(CALLER, dataset)
    assert (caught.value.status_code, caught.value.code) == (400, "dataset_not_allowed")
    assert caught.value.param == "dataset"
