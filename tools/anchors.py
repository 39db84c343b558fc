"""A Sphinx extension: places on a page that other pages can point at.

On a chapter's page every code cell gets the id `cell-17`, its number among the code cells, and every claim the id
`claim-…` on the very block that states it. Stored outputs have no such ids, and no chapter runs again for them: the
extension looks the claims up in the notebook and marks what MyST-NB has made of them. On the other pages an empty
`<span id="…">` is a place. All of them are made known to MyST, so that the strict build refuses a link to a place that
is not there, as it does for headings.
"""

import html
import re
from pathlib import Path

from docutils import nodes
from sphinx.util import logging

from tools.book import CLAIM_MIME, read
from tools.places import cell_anchor, claim_anchor, places

MARK = re.compile(r'<span [^>]*?\bid="([^"]+)"')
log = logging.getLogger(__name__)


def parts(node, name: str) -> list:
    """What MyST-NB has marked as such a part of a notebook, in order."""
    return [one for one in node.findall(nodes.container) if one.get("nb_element") == name]


def name_cells(doctree, notebook, page: str) -> list[str]:
    """Give each code cell on a page its id, and each claim its own; the ids that were given."""
    by_index = {id(cell): index for index, cell in enumerate(notebook.cells)}
    shown = {one["cell_index"]: one for one in parts(doctree, "cell_code")}
    given = []
    for place, cell in places(notebook):
        node = shown.get(by_index[id(cell)])
        if node is None:
            continue
        node["ids"].append(cell_anchor(place.number))
        given += node["ids"]
        displayed, bundles = [output for output in cell.outputs if "data" in output], parts(node, "mime_bundle")
        if len(displayed) != len(bundles):  # an output of which nothing is shown: the others cannot be told apart
            log.warning("not all outputs of code cell %d are shown", place.number, location=page)
        for output, bundle in zip(displayed, bundles, strict=False):
            quotes = list(bundle.findall(nodes.block_quote))
            if CLAIM_MIME in output.data and quotes:
                quotes[0]["ids"].append(claim_anchor(output.data[CLAIM_MIME]["id"]))
                given += quotes[0]["ids"]
    return given


def on_doctree_read(app, doctree) -> None:
    page, path = app.env.docname, Path(app.env.doc2path(app.env.docname))
    given = name_cells(doctree, read(path), page) if path.suffix == ".ipynb" else []
    for node in doctree.findall(nodes.raw):
        given += map(html.unescape, MARK.findall(node.astext()))
    # MyST keeps the line, the id and the text of each heading under the name by which links ask for it.
    app.env.metadata[page].setdefault("myst_slugs", {}).update({one: (0, one, one) for one in given})


def setup(app) -> dict:
    app.connect("doctree-read", on_doctree_read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
