"""A small file, such as a token, whose content follows the file as it is replaced."""

from pathlib import Path

from lockgate.kit.clock import Clock

_CHECK_SECONDS = 1.0
_MAX_BYTES = 1 << 20


class FollowedFile:
    """The text of a file, read again when the file has changed; looked at no more than once a second."""

    def __init__(self, path: str, clock: Clock, check_seconds: float = 0.0) -> None:
        """`check_seconds` makes the looks rarer than that."""
        self._path, self._clock, self._interval = Path(path), clock, max(check_seconds, _CHECK_SECONDS)
        self._seen: tuple[int, int, int] | None = None
        self._text = ""
        self._checked = float("-inf")

    def text(self) -> str:
        """The content. Raises OSError where it can be read neither now nor was before, and ValueError where it is no text."""
        now = self._clock.monotonic()
        if now - self._checked < self._interval:
            return self._text
        try:
            found = self._path.stat()
            signature = (found.st_ino, found.st_mtime_ns, found.st_size)
            if signature != self._seen:
                with self._path.open("rb") as file:
                    self._text = file.read(_MAX_BYTES).decode()
                self._seen = signature
        except (OSError, UnicodeDecodeError):
            # A Secret being replaced is gone for a moment; what was read before is still the best that is known.
            if self._seen is None:
                raise
        self._checked = now
        return self._text
