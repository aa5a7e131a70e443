"""How reports read: titled facts and verdicts as text, as a table for the notebook, and as JSON."""

import html
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Sections = Mapping[str, Sequence[tuple[str, str]]]
WIDTH = 100


def as_text(title: str, sections: Sections, verdicts: Mapping[str, str], /) -> str:
    """A title, each section's facts in two columns, and the verdicts, wrapped."""
    label_width = max((len(label) for rows in sections.values() for label, _ in rows), default=0)
    lines = [title]
    for name, rows in sections.items():
        lines += ["", f"  {name}"] if name else [""]
        for label, value in rows:
            lead = f"    {label:<{label_width}}   "
            lines.append(textwrap.fill(value, WIDTH, initial_indent=lead, subsequent_indent=" " * len(lead)))
    lines += ["", "  Verdict"]
    for subject, verdict in verdicts.items():
        lead = f"    {subject}: "
        lines.append(textwrap.fill(verdict, WIDTH, initial_indent=lead, subsequent_indent="      "))
    return "\n".join(lines)


def as_html(title: str, sections: Sections, verdicts: Mapping[str, str], /) -> str:
    """The same as one table."""
    rows = []
    for name, facts in [*sections.items(), ("Verdict", list(verdicts.items()))]:
        if name:
            rows.append(f'<tr><th colspan="2" style="text-align:left">{html.escape(name)}</th></tr>')
        rows += [
            f'<tr><td style="text-align:left">{html.escape(label)}</td>'
            f'<td style="text-align:left">{html.escape(value)}</td></tr>'
            for label, value in facts
        ]
    return f"<table><caption>{html.escape(title)}</caption>{''.join(rows)}</table>"


def as_plain(value: Any, /) -> Any:
    """Numbers, lists, words and mappings of them, for JSON: NaN is None, infinities are words, z is [Re z, Im z]."""
    if isinstance(value, Mapping):
        return {str(key): as_plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [as_plain(item) for item in value]
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, complex | np.complexfloating):
        return as_plain(value.real) if value.imag == 0 else [as_plain(value.real), as_plain(value.imag)]
    if isinstance(value, float | np.floating):
        if math.isnan(value):
            return None
        return float(value) if math.isfinite(value) else str(float(value))
    return value
