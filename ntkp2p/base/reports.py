"""How results read: reports of facts and verdicts, as text, HTML, for rich, and as data for JSON; small HTML tables."""

import base64
import html
import io
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

#: The width of plain text.
WIDTH = 80

Rows = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Verdict:
    """What is to be said of one thing in one sentence.

    Attributes
    ----------
    about
        What is judged: an algorithm, "rounds", "flow".
    answer
        Of algorithms "works", "works, but" or "does not work"; of runs "stable", "unstable" or "not known"; of a
        proposition "applies" or "does not apply".
    reason
        Why.
    remedy
        What to type or do instead; empty where nothing needs one.
    """

    about: str
    answer: str
    reason: str
    remedy: str = ""

    def __str__(self) -> str:
        joint = " " if self.answer.endswith("but") else ": "
        return f"{self.answer}{joint}{self.reason}" + (f" → {self.remedy}" if self.remedy else "")


class Report:
    """What has a title, sections of facts, and verdicts; print it, or look at it in a notebook."""

    @property
    def title(self) -> str:
        """What is reported on."""
        raise NotImplementedError

    @property
    def sections(self) -> Mapping[str, Rows]:
        """Facts and their values in words, by section; a single one may be without a name."""
        raise NotImplementedError

    @property
    def verdicts(self) -> Mapping[str, Verdict]:
        """By what they are about."""
        raise NotImplementedError

    def __str__(self) -> str:
        lines, width = [self.title], max(len(label) for rows in self.sections.values() for label, _ in rows)
        for name, rows in self.sections.items():
            if name:
                lines += ["", f" {name}"]
            for label, value in rows:
                hanging = " " * (width + 5)
                lines += textwrap.wrap(
                    f"{label:<{width}}   {value}", WIDTH, initial_indent="  ", subsequent_indent=hanging
                )
        lines += [] if set(self.sections) == {""} else ["", " Verdicts"]
        for names, verdict in _grouped(self.verdicts):
            wrapped = textwrap.wrap(f"{names}: {verdict}", WIDTH - 2, subsequent_indent="  ", break_on_hyphens=False)
            lines += [f"  {line}" for line in wrapped]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        facts = ""
        for name, rows in self.sections.items():
            facts += f'<tr><th colspan="2" style="text-align:left">{html.escape(name)}</th></tr>' if name else ""
            facts += "".join(map(_row, rows))
        judged = "".join(_row((names, v.answer, v.reason, v.remedy)) for names, v in _grouped(self.verdicts))
        head = "".join(f"<th>{name}</th>" for name in ("", "verdict", "reason", "remedy"))
        title = html.escape(self.title)
        return f"<table><caption>{title}</caption>{facts}</table><table><tr>{head}</tr>{judged}</table>"

    def __rich__(self) -> Any:
        from rich import box
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        tables: list[Any] = [Text(self.title)]
        for name, rows in self.sections.items():
            known = Table(title=name or None, title_justify="left", box=box.SIMPLE, show_header=False)
            for label, value in rows:
                known.add_row(Text(label), Text(value))
            tables.append(known)
        judged = Table("", "verdict", "reason", "remedy", box=box.SIMPLE)
        for names, v in _grouped(self.verdicts):
            judged.add_row(Text(names), Text(v.answer, style=_STYLES.get(v.answer, "")), Text(v.reason), Text(v.remedy))
        return Group(*tables, judged)


_STYLES: dict[str, str] = {
    **dict.fromkeys(("works", "stable", "applies"), "green"),
    **dict.fromkeys(("works, but", "not known", "does not apply"), "yellow"),
    **dict.fromkeys(("does not work", "unstable"), "red"),
}


def as_plain(value: Any, /) -> Any:
    """Numbers, words, lists and None, as JSON has them.

    NaN is None, an infinity is the word "inf" or "-inf", a complex number is a pair, a verdict has its fields.
    """
    if isinstance(value, Mapping):
        return {str(key): as_plain(item) for key, item in value.items()}
    if isinstance(value, Verdict):
        return asdict(value)
    if isinstance(value, np.ndarray | np.generic):
        return as_plain(value.tolist())
    if isinstance(value, list | tuple):
        return [as_plain(item) for item in value]
    if isinstance(value, complex):
        return [as_plain(value.real), as_plain(value.imag)]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def html_table(header: Iterable[object], rows: Iterable[Iterable[object]], /) -> str:
    """A small HTML table for a notebook.

    Parameters
    ----------
    header
        The names of the columns.
    rows
        Their cells, as words.
    """

    def row(cells: Iterable[object], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(x))}</{tag}>" for x in cells) + "</tr>"

    return "<table>" + row(header, "th") + "".join(row(cells, "td") for cells in rows) + "</table>"


def picture(draw: Callable[..., Any], /, *, size: tuple[float, float]) -> str:
    """A small image for a notebook's HTML.

    Parameters
    ----------
    draw
        Called with the axes as `ax`.
    size
        Width and height in inches.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")  # not one of pyplot's, which would stay open
    draw(ax=figure.add_subplot())
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=90)
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"/>'


def _grouped(verdicts: Mapping[str, Verdict]) -> list[tuple[str, Verdict]]:
    """Those of which the same is to be said are named together."""
    same: dict[str, list[Verdict]] = {}
    for verdict in verdicts.values():
        same.setdefault(str(verdict), []).append(verdict)
    return [(", ".join(v.about for v in group), group[0]) for group in same.values()]


def _row(cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f'<td style="text-align:left">{html.escape(cell)}</td>' for cell in cells) + "</tr>"
