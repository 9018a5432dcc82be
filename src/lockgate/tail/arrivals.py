"""Files come: what the discovery tells of is opened and followed, if it is meant or known. What is in them is not its matter."""

import os
import stat
from collections.abc import Callable

from msgspec import structs

from lockgate.tail.account import Account
from lockgate.tail.discovery import Discovery, rotated_from
from lockgate.tail.files import Files
from lockgate.tail.follow import ANCHOR_BYTES, Followed, MakeParser, Saved
from lockgate.tail.known import Known
from lockgate.tail.lives import Lives
from lockgate.tail.open import Refused, Roots, name_in, status_of
from lockgate.tail.options import LEAST_CHUNK_BYTES, Options
from lockgate.tail.packed import Unpacked
from lockgate.tail.patterns import Patterns

_COMPRESSED = (".gz", ".tmp", ".zst", ".bz2", ".xz", ".zip")


class Arrivals:
    """A discovery's `Report`."""

    def __init__(
        self,
        options: Options,
        files: Files,
        known: Known,
        lives: Lives,
        account: Account,
        make_parser: MakeParser,
        monotonic: Callable[[], float],
        unix_nano: Callable[[], int],
        *,
        from_start: bool,
    ) -> None:
        self._options, self._files, self._known, self._lives, self._account = options, files, known, lives, account
        self._make_parser, self._monotonic, self._unix_nano = make_parser, monotonic, unix_nano
        self._patterns = patterns = Patterns(options.include, options.exclude)
        self.roots = Roots.of([*patterns.roots, *options.link_roots])
        self.discovery = Discovery(patterns, self.roots, self, inotify=options.inotify)
        self.strangers: dict[str, str] = {}
        """Rotated files to look at, and the logs that they belong to."""
        self.waiting = 0
        """Files that could not be opened because too many are."""
        self.from_start = from_start
        """Whether a file that is new is read from its beginning."""
        self.looked = False
        """Whether everything was looked at once."""

    # Told by the discovery.

    def appeared(self, path: str, inode: int, matched: bool) -> bool:
        if path.endswith(_COMPRESSED):
            if matched:
                self._account.unreadable(path, Refused(f"{path} is compressed, and not read; exclude it"))
            return not matched
        if not matched and not self._known.has_inode(inode):
            return True
        try:
            status = os.stat(path)
            identity = status.st_dev, status.st_ino
            known = self._files.opened.get(identity)
            if known is not None:
                self._files.rename(known, path, matched)
                return True
            if identity in self._options.own:
                return True
            entry = self._known.saved.get(identity)
            if not matched and entry is None:
                return True
            if entry is None and stat.S_ISREG(status.st_mode) and self._options.is_too_old(status, self._unix_nano):
                return False
            if entry is not None and entry.position == status.st_size and (self._files.is_full or (self.looked and not matched)):
                return True  # nothing to read
            if not self._files.make_room():
                self.waiting += 1
                return False
            descriptor, real = self.roots.open(path)
        except FileNotFoundError:
            return False
        except (OSError, Refused) as error:
            if isinstance(error, Refused):
                self._account.refused(path, error)
            else:
                self._account.unreadable(path, error)
            return False
        self._account.readable(path)
        if self._patterns.excluded(real):
            os.close(descriptor)
            return True
        self.adopt(path, real, descriptor, matched)
        return True

    def vanished(self, path: str) -> None:
        self._account.readable(path)
        self.strangers.pop(path, None)
        file = self._files.by_name.get(path)
        if file is not None and file.name == path:
            del self._files.by_name[path]
            self._files.leave(file)

    def rotated(self, path: str, inode: int, log: str) -> bool:
        # Whether it is news is known when everything else was looked at.
        self.strangers[path] = log
        return True

    def unreadable(self, path: str, error: OSError | Refused) -> None:
        self._account.unreadable(path, error)

    def readable(self, path: str) -> None:
        self._account.readable(path)

    @property
    def has_seen_all(self) -> bool:
        """Whether no file is still to be found or opened: what is not there now is gone."""
        return not self.waiting_files and not self.discovery.missing

    @property
    def waiting_files(self) -> int:
        return self.waiting + len(self.strangers)

    # Seen otherwise.

    def moved(self, old: str, new: str) -> None:
        """A file that was made and rotated between two looks: known by its rename alone, where its name does not tell."""
        if rotated_from(os.path.basename(new)) is not None:
            return
        try:
            status = os.stat(new)
            identity = status.st_dev, status.st_ino
            if any(identity in group for group in (self._files.opened, self._known.saved, self._options.own)):
                return
            if not self._files.make_room():
                return
            descriptor, real = self.roots.open(new)
        except FileNotFoundError:
            return
        except (OSError, Refused) as error:
            self._account.unreadable(new, error)
            return
        self._account.counts.found += 1
        self.adopt(new, real, descriptor, False, log=old)

    def check_saved(self) -> None:
        """Files known and not open (rotated while nobody looked, closed to make room): grown, moved, or gone, which is a gap."""
        for entry in list(self._known.saved.values()):
            identity = entry.device, entry.inode
            if not entry.packed and (status := status_of(entry.path, identity)) is not None:
                path, matched = entry.path, True
            elif (status := status_of(entry.real, identity)) is not None:
                path, matched = entry.real, False
            else:
                directory = os.path.dirname(entry.real)
                path, matched = f"{directory}/{name_in(directory, entry.inode)}", False
                status = status_of(path, identity)
            # Otherwise it is an inode used again.
            if status is None or not (path.endswith(".gz") if entry.packed else not path.endswith(_COMPRESSED)):
                self._known.orphan(entry)
                continue
            if entry.packed:
                if not entry.done or path != entry.real:
                    self.strangers[path] = entry.path
                continue
            if status.st_size != entry.position:
                self.appeared(path, entry.inode, matched)
            if path not in (entry.path, entry.real) and identity in self._known.saved:
                self._known.saved[identity] = structs.replace(entry, real=path)

    def adopt(
        self,
        path: str,
        real: str,
        descriptor: int,
        matched: bool,
        *,
        log: str = "",
        entry: Saved | None = None,
        unpacked: Unpacked | None = None,
    ) -> None:
        """Follow this open file. `log`: whose rotated file it is; `entry`: what is known of this content, whatever file it stood in."""
        status = os.fstat(descriptor)
        identity = status.st_dev, status.st_ino
        real = path if real == path else real  # one string for both
        if identity in self._files.opened or identity in self._options.own:
            os.close(descriptor)
            return
        known = entry or self._known.saved.get(identity)
        # A rotated file is still the log of the container whose path it had.
        known_as, known_real = (known.path, known.real) if known is not None and not matched else (log or path, real)
        parse = self._make_parser(known_as, known_real, descriptor)
        file = Followed(known_as, known_real, descriptor, *identity, parse, path, matched, quiet_since=self._monotonic(), unpacked=unpacked)
        self._files.add(file, real)
        if real != path:
            self.discovery.follow_link(path, real)
        if not matched:
            self._files.leave(file)
        at_end = not self.from_start and known is None and not log
        self._lives.identify(file, status.st_size, force=at_end or unpacked is not None, entry=entry)
        if at_end and file.life is not None:
            position, anchor = _line_start(descriptor, status.st_size)
            file.life.start_at(position, False, anchor)
            file.size = position
        if identity in self._files.opened and (file.life is None or file.life.read != status.st_size):
            self._files.ready[file] = None


def _line_start(descriptor: int, size: int) -> tuple[int, bytes]:
    """Where the last, perhaps unfinished line begins, and the bytes before it."""
    begin = max(0, size - LEAST_CHUNK_BYTES)
    tail = os.pread(descriptor, size - begin, begin)
    position = begin + tail.rfind(b"\n") + 1 if b"\n" in tail else (size if begin else 0)
    start = max(0, position - ANCHOR_BYTES)
    return position, os.pread(descriptor, position - start, start)
