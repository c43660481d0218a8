"""Errors around calls of FFmpeg."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from openwavlm.audio.errors import AudioError

# FFmpeg returns these for damaged contents too. `read.decode` finds a failing disk by reading the file through.
_CONTENT_ERRORS = {errno.EINVAL, errno.EIO, errno.ERANGE, errno.EDOM, errno.ENOSYS, errno.EPERM, errno.ENOENT, errno.EAGAIN}


@contextmanager
def ffmpeg_errors(what: str) -> Iterator[None]:
    """Turns errors of FFmpeg into an AudioError (`unreadable`) that names the failed action, `what`, or an OSError of the machine."""
    import av

    try:
        yield
    except av.error.FFmpegError as error:
        number = error.errno or 0
        text = (error.strerror or str(error)).rstrip(".")
        if number == errno.ENOMEM and _has_memory():
            raise AudioError("unreadable", "a length in the file is larger than any memory: it is damaged") from error
        if number in errno.errorcode and number not in _CONTENT_ERRORS:
            raise OSError(number, os.strerror(number)) from error
        raise AudioError("unreadable", f"{what} ({text})" if what else text) from error


def _has_memory() -> bool:
    """True if 256 MiB are free; a damaged file that asks FFmpeg for more than 2 GiB fails like a full memory."""
    try:
        bytearray(1 << 28)
    except MemoryError:
        return False
    return True
