"""What may come back over `consume`.

    Refusal
    ├── Retryable    try later, perhaps after a given delay; nobody has the data but the caller
    └── Permanent    never; nobody will take these records, for this reason

(The collector's `consumererror`, and OTLP's retryable and not-retryable responses.) Anything else that comes back is our own bug.
"""


class Refusal(Exception):
    """The next owner did not take custody."""


class Retryable(Refusal):
    """Try the same batch again, not before `after` seconds where that is given."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


class Permanent(Refusal):
    """This batch will never be taken; count it, say why, go on."""
