"""Let docstrings be written for people; this Sphinx extension makes them safe for the API page.

- Docstrings write shapes and absolute values plainly, as in ``(B, C, *S)`` and ``|J|``. reStructuredText
  would take a lone ``*`` for the start of emphasis and ``|J|`` for a substitution, so both are escaped. Code
  spans and doctests stay as they are.
- ``name : text`` in a list of parameters may hold a whole sentence. All of it is taken for the description,
  and none of it for a type.
"""

import re

PROTECTED = re.compile(r"(``.+?``|`[^`]+`_*)")
LONE_STAR = re.compile(
    r"(?<![\\*\w])\*(?=\w)(?![^*]*[^\s*]\*(?![\w*]))"
)  # not followed by a star that closes
BAR = re.compile(r"(?<!\\)\|")
UNDERLINE = re.compile(r"\s*-{3,}\s*$")
FIELD = re.compile(r"(\s*)(\*{0,2}[\w, ]*\w) : (.+)$")
LISTS = {"Parameters", "Other Parameters", "Attributes", "Keyword Arguments"}


def escape(line: str) -> str:
    """The line with lone stars and bars escaped outside code spans."""
    if line.lstrip().startswith((">>>", "...")):
        return line
    pieces = PROTECTED.split(line)
    pieces[::2] = [BAR.sub(r"\\|", LONE_STAR.sub(r"\\*", piece)) for piece in pieces[::2]]
    return "".join(pieces)


def describe(lines: list[str]) -> list[str]:
    """The lines with ``name : text`` split in two inside lists of parameters."""
    result, section, indent = [], "", ""
    for line, following in zip(lines, [*lines[1:], ""]):
        if UNDERLINE.match(following):
            section, indent = line.strip(), line[: len(line) - len(line.lstrip())]
        field = FIELD.match(line) if section in LISTS else None
        if field and field[1] == indent:
            result += [f"{indent}{field[2]}", f"{indent}    {field[3]}"]
        else:
            result.append(line)
    return result


def process(app, what, name, obj, options, lines):
    lines[:] = describe([escape(line) for line in lines])


def setup(app):
    app.connect("autodoc-process-docstring", process, priority=100)  # napoleon comes at 500
    return {"parallel_read_safe": True, "parallel_write_safe": True}
