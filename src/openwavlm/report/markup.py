"""The pieces of HTML that every page is made of; all text is escaped here."""

import html
from collections.abc import Iterable, Sequence

import numpy as np

from openwavlm.report.pictures import audio_uri
from openwavlm.report.style import STYLE


def document(title: str, body: str) -> str:
    """A whole page, which fetches nothing."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escaped(title)}</title><style>{STYLE}</style></head><body><main>\n" + body + "\n</main></body></html>\n"
    )


def escaped(value: object) -> str:
    """A value, escaped."""
    return html.escape(str(value))


def paragraph(words: str) -> str:
    """A paragraph; nothing of an empty text."""
    return f"<p>{escaped(words)}</p>" if words else ""


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of figures whose first column names the row."""
    top = "".join(f"<th>{escaped(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>"
        + "".join(f"<{'td' if place else 'th'}>{escaped(cell)}</{'td' if place else 'th'}>" for place, cell in enumerate(row))
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table class="figures"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def sound(title: str, signal: np.ndarray, peak: float, *, flac: bool = False) -> str:
    """A player with its title; `peak` as in `audio_uri`."""
    source = audio_uri(signal, peak, flac=flac)
    return f'<figure><figcaption>{escaped(title)}</figcaption><audio controls preload="metadata" src="{source}"></audio></figure>'
