"""Follows log files: containers' logs, with rotation and positions, and others.

`settings` is what a user writes, `parsers` turns a file's bytes into records, `receiver` runs `lockgate.tail`.
"""

from lockgate.components.receivers.filelog.receiver import FilelogReceiver

__all__ = ["FilelogReceiver"]
