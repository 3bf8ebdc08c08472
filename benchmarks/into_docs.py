"""Put the tables of records where a document says that they go.

    python benchmarks/into_docs.py docs/results.md

Between a line ``<!-- records: FOLDER -->`` and the next ``<!-- end -->`` comes the table of all
records below FOLDER, which is relative to the document; where there are none, what stands there
stays.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from harness.cost_tables import cost_tables
from harness.records import Record, check
from harness.tables import markdown
from stat_prune.errors import DataError

PLACE = re.compile(r"(<!-- records: (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def with_tables(text: str, folder: Path) -> str:
    """The text of a document in a folder, with its tables made anew.

    Raises
    ------
    DataError
        If a place has no end, or a record is none.
    """
    if text.count("<!-- records: ") != len(PLACE.findall(text)):
        raise DataError("A <!-- records: FOLDER --> has no <!-- end --> after it.")

    def made(place: re.Match[str]) -> str:
        found = read(folder / place[2])
        return place[1] + (f"\n{tables(found)}\n\n" if found else place[3]) + place[4]

    return PLACE.sub(made, text)


def read(folder: Path) -> list[Record]:
    """All records below a folder, those of dense models left out."""
    found = []
    for path in sorted(folder.rglob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        check(record, path)
        found += [record] if record["method"] != "dense" else []
    return found


def tables(found: list[Record]) -> str:
    """With costs where they were measured, else of scores alone."""
    costly = [record for record in found if record.get("measures")]
    others = [record for record in found if not record.get("measures")]
    return f"{cost_tables(costly)}\n{markdown(others)}".strip()


def main(
    documents: Annotated[list[Path], typer.Argument(help="Markdown with places for tables.")],
) -> None:
    """Write them, in place."""
    for path in documents:
        path.write_text(
            with_tables(path.read_text(encoding="utf-8"), path.parent), encoding="utf-8"
        )


if __name__ == "__main__":
    typer.run(main)
