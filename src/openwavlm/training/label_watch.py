"""A run's labels against their checksums: in the background beside the training, and before each checkpoint is written."""

import logging
import threading
from collections.abc import Callable, Iterable

from openwavlm.labels.pack import Pack
from openwavlm.labels.store import LabelStore

log = logging.getLogger(__name__)


class LabelWatch:
    """Reads what `LabelStore.open` has left unread, and notices packs that change while a run reads them.

    A file that another one replaces (a rename) is read on as it was; one that is changed in place is noticed by its time and size.

    Args:
        stores: The labels of the run.
        reads: Whether this process reads files: one of each node.
        on_damage: Called from the background, once, with the sentence of the first pack that is not the one that was written.
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
            unchecked = store.unchecked
            if reads:
                self._packs += [store.pack(number) for number in store.used]
                self._unread += [store.pack(number) for number in unchecked]
            store.leave_to_watch()

    def start(self) -> None:
        """Begins to read in the background."""
        if self._unread:
            log.info("%d packs of labels are compared with their checksums in the background", len(self._unread))
            self._thread = threading.Thread(target=self._read, name="labels", daemon=True)
            self._thread.start()

    def confirm(self) -> None:
        """Waits for the background, and reads again what has changed since.

        Raises:
            ValueError: If a pack is not the one that was written.
            OSError: If one cannot be read.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            raise self._error
        for pack in self._packs:
            if pack.check_changed() and pack not in self._replaced:
                self._replaced.add(pack)
                log.warning(
                    "%s has been replaced or removed; this launch goes on with the labels that it began with, the next one reads the "
                    "new file",
                    pack.labels_file,
                )

    def close(self) -> None:
        """Ends the background."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _read(self) -> None:
        try:
            for pack in self._unread:
                if self._ended.is_set():
                    return
                pack.check_once()
        except (ValueError, OSError) as error:
            self._error = error
            self._on_damage(str(error))
