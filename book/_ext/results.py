"""Roles that put measured values into prose, and the results files beside the pages.

- ``{result}`demo_faces/tm-tvf ssim``` becomes the stored mean ± standard deviation, as a link to its file. A
  number at the end is the number of digits (``{result}`demo_faces/tm-tvf ssim 1```); ``mean`` before the
  metric leaves out the deviation.
- ``{verdict}`best-ssim demo_faces``` becomes the ledger's verdict on a claim, as a link to the ledger's page.

Values come from ``book/results`` when the page is built, so that a page cannot disagree with them. A wrong
name is a warning, which the build takes for an error. The files themselves are copied to ``book/results`` of
the built book, and the cards of the weights to ``book/weights``, where links and run cards find them.
"""

import json
import shutil
from pathlib import Path

from docutils import nodes
from sphinx.util.docutils import SphinxRole

LEDGER_PAGE = "notebooks/07_claims"


class Result(SphinxRole):
    """``data/name [mean] metric [digits]``; the name of a result is usually that of its method."""

    def run(self):
        from tvf_core.evaluation.results import find
        from tvf_core.reporting.tables import plus_minus

        path, *words = self.text.split()
        data, _, name = path.partition("/")
        digits = int(words.pop()) if words[-1:] and words[-1].isdigit() else 3
        try:
            file = find(name, data, Path(self.env.srcdir) / "book" / "results")
            value = json.loads(file.read_text("utf-8"))["summary"][words[-1]]
            if words[:-1] not in ([], ["mean"]):
                raise KeyError(words[0])
        except (OSError, KeyError, IndexError):
            form = "data/name [mean] metric [digits]"
            return _wrong(self, f"no stored result {self.text!r} in book/results; expected '{form}'")
        text = f"{value['mean']:.{digits}f}" if words[0] == "mean" else plus_minus(value, digits)
        target = f"{_up(self.env.docname)}book/results/{data}/{file.name}"
        return [nodes.reference(self.rawtext, text, refuri=target)], []


class Verdict(SphinxRole):
    """``claim data``."""

    def run(self):
        from tvf_core.reporting import claims, tables

        name, _, data = self.text.partition(" ")
        [entry] = [e for e in tables.ledger()["claims"] if e["id"] == name] or [None]
        found = [f for f in claims.claim(entry) if f.data == data] if entry else []
        if not found:
            return _wrong(self, f"the ledger has no claim and data {self.text!r}")
        return [
            nodes.reference(
                self.rawtext, found[0].verdict, refuri=f"{_up(self.env.docname)}{LEDGER_PAGE}.html"
            )
        ], []


def _wrong(role: SphinxRole, text: str):
    message = role.inliner.reporter.warning(text, line=role.lineno)
    return [role.inliner.problematic(role.rawtext, role.rawtext, message)], [message]


def _up(page: str) -> str:
    """From a page to the top of the built book."""
    return "../" * page.count("/")


def copy_files(app, exception):
    """Results, and the cards of the weights, into the built book."""
    if exception is None and app.builder.format == "html":
        for folder in ("results", "weights"):
            source = Path(app.srcdir) / "book" / folder
            shutil.copytree(
                source,
                Path(app.outdir) / "book" / folder,
                dirs_exist_ok=True,
                ignore=shutil.ignore_patterns("*.safetensors", ".*"),
            )
        shutil.copy2(Path(app.srcdir) / "book" / "claims.yml", Path(app.outdir) / "book")


def setup(app):
    app.add_role("result", Result())
    app.add_role("verdict", Verdict())
    app.connect("build-finished", copy_files)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
