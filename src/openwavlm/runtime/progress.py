"""Progress bar on standard error, if that is a terminal."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn


class ProgressBar:
    """A bar shown during a `with` block if it is `visible`; `counts` adds `done/total`, a `transient` bar disappears at the end."""

    def __init__(
        self, total: float, description: str = "", *, visible: bool = True, counts: bool = True, transient: bool = False
    ) -> None:
        console = Console(stderr=True)
        self.on_terminal = console.is_terminal
        columns: list[ProgressColumn] = [TextColumn("{task.description}"), BarColumn()]
        columns += [MofNCompleteColumn()] if counts else []
        columns += [TimeRemainingColumn(), TextColumn("{task.fields[figure]}")]
        self._bar = Progress(*columns, console=console, disable=not (visible and console.is_terminal), transient=transient)
        self._task = self._bar.add_task(description, total=total, figure="")

    def __enter__(self) -> "ProgressBar":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def advance(self, amount: float = 1, description: str | None = None) -> None:
        """Adds finished work; changes the title if one is given."""
        self._bar.update(self._task, advance=amount, description=description)

    def set(self, done: float, description: str, figure: str = "") -> None:
        """Sets the finished work, the title, and a figure after the bar."""
        self._bar.update(self._task, completed=done, description=description, figure=figure)
