"""Contents that are known and not open: from the checkpoint, closed to make room, rotated and read. Opens and reads nothing."""

from collections.abc import Iterable

from lockgate.tail.follow import Saved


class Known:
    """What a checkpoint should know besides the open files."""

    def __init__(self, saved: Iterable[Saved]) -> None:
        self.saved: dict[tuple[int, int], Saved] = {}
        """By identity of the file that they stand in."""
        self.orphans: list[Saved] = []
        """Contents whose file is gone, or holds another: perhaps they stand compressed under another name."""
        self.packed_keys: set[str] = set()
        """Lives that stand compressed: their inode numbers may name other files by now."""
        self._inodes: dict[int, int] = {}
        for entry in saved:
            self.remember(entry)

    def has_inode(self, inode: int) -> bool:
        """Whether a file that is open or saved has this number: what a listing alone can tell."""
        return inode in self._inodes

    def count_inode(self, inode: int) -> None:
        self._inodes[inode] = self._inodes.get(inode, 0) + 1

    def uncount_inode(self, inode: int) -> None:
        self._inodes[inode] -= 1
        if not self._inodes[inode]:
            del self._inodes[inode]

    def remember(self, entry: Saved) -> None:
        """This content stands in a file that is not open."""
        identity = entry.device, entry.inode
        if (older := self.saved.get(identity)) is not None:
            self.orphan(older)  # its file went, and its inode number was used again
        self.saved[identity] = entry
        self.count_inode(entry.inode)
        if entry.packed:
            self.packed_keys.add(entry.key)

    def forget(self, entry: Saved) -> None:
        """It is followed, or stands elsewhere."""
        if self.saved.pop((entry.device, entry.inode), None) is not None:
            self.uncount_inode(entry.inode)
            self.packed_keys.discard(entry.key)

    def orphan(self, entry: Saved) -> None:
        """Its file went, or holds another content by now."""
        self.forget(entry)
        self.orphans.append(entry)
