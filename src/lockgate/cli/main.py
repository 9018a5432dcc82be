"""The entry point."""

from __future__ import annotations

import sys
from pathlib import Path

from lockgate.cli import running


def main() -> None:
    """The entry point `lockgate`. Exit status: 0 done, 1 it failed, 2 the arguments or the configuration are wrong; of `run` also 75
    (lockdown/sandbox.py, RESTART_STATUS)."""
    from lockgate.kit.document import DocumentError

    try:
        if (plain := running.plain_arguments(sys.argv[1:])) is not None:
            sys.exit(running.run(*plain))
        from lockgate.cli.commands import app

        sys.exit(app())
    except DocumentError as error:
        for warning in error.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        for problem in error.problems:
            print(problem, file=sys.stderr)
        count = len(error.problems)
        print(f"lockgate: {count} problem{'s' if count > 1 else ''} in the configuration", file=sys.stderr)
        sys.exit(2)
    except LookupError as error:
        if isinstance(error, KeyError | IndexError):
            raise  # a fault of our own
        print(f"lockgate: {error.args[0]}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        # `lockgate needs ... | head`: the reader has what it wanted.
        sys.stderr.close()
        sys.exit(0)


if __name__ == "__main__":
    sys.argv[0] = str(Path(sys.argv[0]).parent)
    main()
