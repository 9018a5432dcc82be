"""Arguments -> one call below. Nothing else."""

from lockgate.cli.main import main

__all__ = ["main"]
