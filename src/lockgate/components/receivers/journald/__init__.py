"""Reads systemd's journal from its files, without a running journald and without journalctl.

`settings` is what a user writes, `journal` is libsystemd's reader, `shrunk` saves it from files that are cut, `records` turns entries into
bytes, `receiver` runs them.
"""

from lockgate.components.receivers.journald.receiver import JournaldReceiver

__all__ = ["JournaldReceiver"]
