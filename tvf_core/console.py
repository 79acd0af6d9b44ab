"""What a command prints, in whatever encoding: a terminal or a log without umlauts ends no command."""

from __future__ import annotations

import codecs
import sys

_PLAIN = {"–": "-", "±": "+-", "•": "*", "\N{NO-BREAK SPACE}": " "}  # as people write them with ASCII alone


def _instead(error: UnicodeError) -> tuple[str | bytes, int]:
    """What stands for a character that the encoding lacks: a plain one, or its number as in ``\\xfc``.

    Bytes of a file name that are no text in the machine's encoding are printed as they are, so that the name
    can be copied.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    sign, rest = error.object[error.start], error.start + 1
    if 0xDC80 <= ord(sign) <= 0xDCFF:  # how Python keeps such a byte
        return bytes([ord(sign) - 0xDC00]), rest
    return _PLAIN.get(sign) or sign.encode("ascii", "backslashreplace").decode(), rest


codecs.register_error("tvf_core", _instead)


def print_any_text() -> None:
    """Let ``print`` write every text to stdout and stderr, also where their encoding lacks a character."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not where a caller has put something else in its place
            stream.reconfigure(errors="tvf_core")
