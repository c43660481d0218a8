"""Comparison of a run's labels with their checksums, in the background of training and before each checkpoint."""

import logging
import threading
from collections.abc import Callable, Iterable

from openwavlm.labels.pack import Pack
from openwavlm.labels.store import LabelStore

log = logging.getLogger(__name__)


class LabelWatch:
    """Reads the packs that `LabelStore.open` left unread, and notices packs that change while a run reads them.

    If a rename replaces a file, the old content stays in use. A change in place is noticed by time and size.

    Args:
        reads: Whether this process checks files; one of each node does.
        on_damage: Called from the background, once, with the message of the first damaged pack.
    """

    def __init__(self, stores: Iterable[LabelStore], *, reads: bool, on_damage: Callable[[str], None]) -> None:
        self._packs: list[Pack] = []
        self._unread: list[Pack] = []
        self._on_damage = on_damage
        self._error: Exception | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._replaced: set[Pack] = set()
        for store in stores:
            if reads:
                self._packs += [store.pack(number) for number in store.used]
                self._unread += [store.pack(number) for number in store.unchecked]
            store.leave_to_watch()

    def start(self) -> None:
        """Starts the background thread."""
        if self._unread:
            log.info("%d packs of labels are compared with their checksums in the background", len(self._unread))
            self._thread = threading.Thread(target=self._read, name="labels", daemon=True)
            self._thread.start()

    def confirm(self) -> None:
        """Waits for the background thread, and checks the packs for changes since.

        Raises:
            ValueError: If a pack is damaged.
            OSError: If one cannot be read.
        """
        self._join()
        if self._error is not None:
            raise self._error
        for pack in self._packs:
            if pack.check_changed() and pack not in self._replaced:
                self._replaced.add(pack)
                log.warning(
                    "%s was replaced or removed; this launch continues with the old content, the next one reads the new file",
                    pack.labels_file,
                )

    def close(self) -> None:
        """Ends the background thread."""
        self._ended.set()
        self._join()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _read(self) -> None:
        try:
            for pack in self._unread:
                if self._ended.is_set():
                    return
                pack.check_once()
        except (ValueError, OSError) as error:
            self._error = error
            self._on_damage(str(error))
