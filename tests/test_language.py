"""Words that the project does not use: metaphors, archaic forms, and names that a researcher would not look for."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
#: Each pattern and what to write instead.
BANNED = {
    r"\bdoors?\b": "function, argument",
    r"\brooms?\b": "package, memory",
    r"\bwho(ever|m)\b": "a process that, an agent that",
    r"\bknocks?\b|\bguests?\b": "connect, peer",
    r"\bawake\b|\blively\b": "active, all participate",
    r"\blaps?\b": "period",
    r"\bseats?\b": "slots",
    r"\bsettl(e|es|ed|ing)\b": "converge",
    r"\bof theirs\b|\bof (one|a user|the user|agents)['’]s own\b": "your own, user-defined",
    r"\bunder one['’]s hands\b": "interactively",
    r"\bfor ever\b": "indefinitely",
    r"\banew\b": "again, new",
    r"\b(no|any|every)body\b": "no agent, every agent",
    r"\bclocks of (their|its|the agents['’]) own\b": "asynchronous",
    r"\btraffic\b": "message counts",
    r"\b(linear|discret|initial|stabil)ization\b|\bbehavior|(?<!\.)\bneighbor(s|ing)?\b": "British spelling",
}


def passages():
    """Each file's text for people: of programs everything, of notebooks the Markdown and the code."""
    for path in sorted(
        [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "api").glob("*.rst")]
        + [path for folder in ("ntkp2p", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    ):
        if path != Path(__file__).resolve():
            yield path, path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        yield path, "\n".join("".join(cell["source"]) for cell in cells)


@pytest.mark.parametrize("pattern", BANNED)
def test_banned_words_are_not_used(pattern):
    found = [
        f"{path.relative_to(ROOT)}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]!r}"
        for path, text in passages()
        for match in re.finditer(pattern, text, re.I)
    ]
    assert not found, f"write {BANNED[pattern]} instead:\n" + "\n".join(found)
