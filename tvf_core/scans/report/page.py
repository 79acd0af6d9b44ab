"""The page itself: the first screen, the sections, and writing it."""

from __future__ import annotations

from html import escape
from importlib import resources
from pathlib import Path

from ...paths import write_then_rename
from . import images, tables
from .case import ReportCase
from .words import achievements, concerns

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def write(path: Path, case: ReportCase) -> None:
    """Write the report of a registration as one HTML file, which is there in full or not at all.

    Parameters
    ----------
    path : of the file.
    case : what it tells.

    Raises
    ------
    ValueError : an array that is not on the working grid; nothing is written.
    OSError : the file cannot be written.
    """
    case.check()
    page = _page(case).encode("utf-8", "replace")  # names of files need not be text
    with write_then_rename(Path(path)) as temporary, open(temporary, "wb") as file:
        file.write(page)


def _page(case: ReportCase) -> str:
    style, script = (
        resources.files(__package__).joinpath(name).read_text("utf-8") for name in ("report.css", "report.js")
    )
    sections = [
        ("pictures", "Before and after", images.before_and_after(case)),
        ("map", "The map", images.of_the_map(case)),
        ("numbers", "Numbers", tables.section(case)),
        ("repeat", "Repeat the result", _commands(case)),
        ("files", "Files", _files(case)),
        ("run", "The run", _run(case)),
    ]
    links = " ".join(f'<a href="#{name}">{title}</a>' for name, title, _ in sections)
    body = "\n".join(
        f'<section id="{name}" aria-labelledby="{name}-title">\n<h2 id="{name}-title">{title}</h2>\n'
        f"{content}\n</section>"
        for name, title, content in sections
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Registration of {escape(case.moving)} to {escape(case.fixed)}</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>Registration report</h1>
<dl class="pair">
<div><dt>Moving</dt><dd>{escape(case.moving)}</dd></div>
<div><dt>Fixed</dt><dd>{escape(case.fixed)}</dd></div>
</dl>
{_verdict(case)}
<nav aria-label="Sections">{links}</nav>
</header>
<main>
{body}
</main>
<script>
{script}</script>
</body>
</html>
"""


def _verdict(case: ReportCase) -> str:
    """The first screen: what is alarming, what was done, how good it is."""
    total = sum(case.seconds.values())
    size = " x ".join(map(str, case.grid.shape))
    done = (
        f"The moving image was registered to the fixed image by {escape(case.method)} in {_time(total)}, on "
        f"a working grid of {size} voxels of {_spacing(case)}."
    )
    said = "".join(f"<li>{escape(text)}</li>" for text in achievements(case))
    outcome = f'<p>{done}</p>\n<ul class="outcome">{said}</ul>'
    if alarms := concerns(case):
        listed = "".join(f"<li>{escape(text)}</li>" for text in alarms)
        title = "Look at this before you use the result" if len(alarms) > 1 else "One thing to look at first"
        return f'<div class="verdict bad" role="note"><h2>{title}</h2>\n<ul>{listed}</ul></div>\n{outcome}'
    return f'<div class="verdict good" role="note"><h2>No warnings</h2>\n{outcome}</div>'


def _spacing(case: ReportCase) -> str:
    sizes = [f"{s:.4g}" for s in case.grid.spacing]
    text = sizes[0] if len(set(sizes)) == 1 else " x ".join(sizes)
    return f"{text} {case.unit.removesuffix('s') if text == '1' else case.unit}"


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{seconds:.1f} s" if seconds < 90 else f"{minutes} min {rest} s"


def _commands(case: ReportCase) -> str:
    if not case.commands:
        return "<p>No transforms were written.</p>"
    parts, program = [], None
    for command in case.commands:
        if command.program != program:
            program = command.program
            parts.append(f"<h3>{escape(program)}</h3>")
        parts.append(f"<p>{escape(command.does)}</p>" if command.does else "")
        if command.code:
            parts.append(f"<pre><code>{escape(command.text)}</code></pre>")
        else:
            parts.append(f"<p>{escape(command.text)}</p>")
    return "\n".join(parts)


def _files(case: ReportCase) -> str:
    rows = [[f"<code>{escape(name)}</code>", escape(what)] for name, what in case.files.items()]
    return tables.table("Files beside this report", ["File", "What it is"], rows, last_is_text=True)


def _run(case: ReportCase) -> str:
    parts = []
    if case.notes:
        listed = "".join(f"<li>{escape(note)}</li>" for note in case.notes)
        parts.append(f"<h3>Notes of the readers</h3>\n<ul>{listed}</ul>")
    rows = [[escape(stage), tables.number(s, ".1f")] for stage, s in case.seconds.items()]
    rows.append(["<b>total</b>", tables.number(sum(case.seconds.values()), ".1f")])
    parts.append("<h3>Time</h3>" + tables.table("Time per stage", ["Stage", "Seconds"], rows))
    rows = [[escape(program), escape(version)] for program, version in case.versions.items()]
    parts.append(
        "<h3>Versions</h3>" + tables.table("Versions of programs", ["Program", "Version"], rows, True)
    )
    return "\n".join(parts)
