"""Arrow arrays from plain buffers and back, without a copy.

`pa.array` and `to_numpy` would do, but they import pandas where that is installed: 55 MB for
nothing.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import accumulate
from typing import Any


def int32s(values: Any) -> Any:
    """An int32 array over anything that is a buffer of 4-byte integers."""
    import pyarrow as pa

    buffer = pa.py_buffer(values)
    return pa.Array.from_buffers(pa.int32(), buffer.size // 4, [None, buffer])


def int32_lists(offsets: Any, values: Any) -> Any:
    """A list<int32> array; `offsets` has one entry more than there are lists."""
    import pyarrow as pa

    bounds = pa.py_buffer(offsets)
    kind = pa.list_(pa.int32())
    count = bounds.size // 4 - 1
    return pa.Array.from_buffers(kind, count, [None, bounds], children=[int32s(values)])


def as_numpy(values: Any) -> Any:
    """An int32 array as a numpy view."""
    import numpy as np

    return np.frombuffer(values.buffers()[1], np.int32, len(values), values.offset * 4)


def strings(texts: Sequence[str]) -> Any:
    import pyarrow as pa

    encoded = [text.encode() for text in texts]
    bounds = array("i", accumulate(map(len, encoded), initial=0))
    buffers = [None, pa.py_buffer(bounds), pa.py_buffer(b"".join(encoded))]
    return pa.Array.from_buffers(pa.string(), len(encoded), buffers)
