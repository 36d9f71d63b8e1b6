from __future__ import annotations

import pytest

from tests.upgrade import previous
from tests.upgrade.previous import Previous


@pytest.fixture(scope="session")
def old(tmp_path_factory: pytest.TempPathFactory) -> Previous:
    return previous.unpack(tmp_path_factory.mktemp("previous"))
