"""Table: one table of a report, as HTML and as Markdown."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str = ""

    def html(self) -> str:
        """A section; the column "command" is code."""

        def cell(name: str, text: str) -> str:
            inside = html.escape(text)
            return f"<td><code>{inside}</code></td>" if name == "command" else f"<td>{inside}</td>"

        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.header)
        lines = ["".join(cell(name, text) for name, text in zip(self.header, row)) for row in self.rows]
        body = "".join(f"<tr>{line}</tr>" for line in lines)
        note = f'<p class="faint">{html.escape(self.note)}</p>' if self.note else ""
        table = f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'
        return f"<section><h3>{html.escape(self.title)}</h3>{table}{note}</section>"

    def markdown(self) -> list[str]:
        """Lines: a heading, the table, the note."""
        return [f"## {self.title}", "", *self.grid(), "", self.note, ""]

    def grid(self) -> list[str]:
        """Lines of Markdown: the table alone."""

        def line(cells: Sequence[str]) -> str:
            return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

        return [line(self.header), line(["---"] * len(self.header)), *map(line, self.rows)]
