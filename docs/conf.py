"""Pages in Markdown, the reference from docstrings, notebooks with their committed outputs. Nothing is fetched."""

import re
import shutil
from pathlib import Path

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

import ntkp2p
from ntkp2p.runs.citation import references

# Pages must lie below this folder, and a link to another one would lead out of it again.
HERE = Path(__file__).parent
shutil.copytree(HERE.parent / "notebooks", HERE / "notebooks", dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))

project = "ntkp2p"
author = "The ntkp2p authors"
version = release = ntkp2p.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build"]

# Docstrings name objects in single backticks.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
suppress_warnings = ["ref.python"]  # single backticks also hold words, which several classes have as attributes
autosummary_generate = False  # tables only: the entries are on the same page
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True  # attributes are listed with their class

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

nb_execution_mode = "off"
nb_ipywidgets_js = {}  # by default fetched from elsewhere; a widget shows its last figure instead

html_theme = "furo"
html_title = f"ntkp2p {release}"
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_math_renderer = "mathml"


def setup(app):
    app.add_html_math_renderer("mathml", (_inline, None), (_display, None))
    app.connect("source-read", _links)
    # Before and after napoleon, whose priority is 500.
    app.connect("autodoc-process-docstring", _colons, priority=400)
    app.connect("autodoc-process-docstring", _sources, priority=600)


def _inline(translator, node):
    translator.body.append(_mathml(node, display=False))
    raise nodes.SkipNode


def _display(translator, node):
    translator.body.append(f'<div class="math">{_mathml(node, display=True)}</div>')
    raise nodes.SkipNode


def _mathml(node, *, display):
    """Mathematics as MathML, by docutils, which browsers draw by themselves: no script, and nothing is fetched."""
    tex = node.astext()
    if r"\\" in tex and r"\begin" not in tex:  # several rows
        tex = rf"\begin{{aligned}}{tex}\end{{aligned}}"
    try:
        # Bars of a norm would be as high as the line on one side, and as low as its exponent on the other.
        return re.sub(
            r"<mo(?: class=\"mathopen\")?>([‖|])</mo>",
            r'<mo stretchy="false">\1</mo>',
            tex2mathml(tex, as_block=display),
        )
    except MathError as error:
        logging.getLogger(__name__).warning("%s in %r", error, tex, location=node)
        return ""


# Where a page is found here that is elsewhere in the repository.
_MOVED = {"](../docs/": "](/", "](../notebooks/": "](/notebooks/", "](../benchmarks/README.md": "](/benchmarks.md"}


def _links(app, name, source):
    """Links that are right between the repository's folders, right here, too; and the references page's list."""
    for there, here in _MOVED.items():
        source[0] = source[0].replace(there, here)
    if name == "references":
        source[0] += "\n\n".join(f"({key})=\n- {_in_words(entry)}" for key, entry in references().items())


def _in_words(entry):
    field = dict(re.findall(r"(\w+) = {+(.*?)}+,", entry))
    names = [author.split(",")[0] for author in field.get("author", "").split(" and ") if author != "others"]
    names = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    where = [field.get(name, "") for name in ("journal", "booktitle", "publisher", "school", "howpublished", "volume")]
    version = f"version {field['version']}" if "version" in field else ""
    arxiv = f"arXiv {field['eprint']}" if "eprint" in field else ""
    source = [" ".join(filter(None, where)), version, arxiv, field.get("year", ""), field.get("url", "")]
    names += " et al." if "others" in field.get("author", "") else "." if names else ""
    return f"{names} *{field['title']}*. {', '.join(filter(None, source))}."


def _colons(app, what, name, thing, options, lines):
    """What precedes a colon in an attribute's docstring is a sentence, not its type, for which napoleon takes it."""
    if what in ("attribute", "property", "data") and lines:
        lines[0] = lines[0].replace(":", "\0")


def _sources(app, what, name, thing, options, lines):
    """Numbered sources of a docstring as a plain list: numbers are of one docstring, a page has many."""
    text = (line.replace("\0", ":") for line in lines)
    lines[:] = [re.sub(r"\[(\d+)\]_", r"[\1]", re.sub(r"^\.\. \[(\d+)\] ", r"\1. ", line)) for line in text]
