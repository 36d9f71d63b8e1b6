"""Writes train.jsonl and held_out.jsonl beside itself: python examples/smart_home/generate.py"""

from __future__ import annotations

import json
from pathlib import Path

from gpu_worker.smart_home import Row, held_out_rows, train_rows


def main(folder: Path) -> None:
    for name, rows in (("train.jsonl", train_rows()), ("held_out.jsonl", held_out_rows())):
        (folder / name).write_text(as_jsonl(rows))
        print(f"{folder / name}: {len(rows)} rows")


def as_jsonl(rows: list[Row]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main(Path(__file__).parent)
