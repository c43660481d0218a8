"""The error of a recording that cannot be used."""


class AudioError(ValueError):
    """A recording or segment that cannot become an utterance.

    Attributes:
        reason: `missing`, `unreadable`, `truncated`, `undecoded` (bytes remain after decoding), `no-decoder` (the extra `media` is not
            installed), `zero-length`, `all-zero`, `not-finite`, `too-short`, `too-long`, `out-of-range`, `over-scale`, `no-such-channel`.
        detail: The values found.
        recording_s: With `out-of-range`: duration of the recording, seconds.
    """

    def __init__(self, reason: str, detail: str, recording_s: float | None = None) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.recording_s = recording_s
