"""Figures, counts and durations as text."""


def number(value: float, places: int = 3) -> str:
    """A figure with a fixed number of places and a real minus sign."""
    return f"{value:.{places}f}".replace("-", "−")


def grouped(count: float) -> str:
    """A count with narrow no-break spaces between thousands."""
    return f"{int(count):,}".replace(",", "\u202f")


def plural(count: float, noun: str) -> str:
    """`1 row`, `2 rows`, `3 micro-batches`."""
    return f"{grouped(count)} {noun}" if count == 1 else f"{grouped(count)} {noun}{'es' if noun.endswith(('ch', 's')) else 's'}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, by size."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
