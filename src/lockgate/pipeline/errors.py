"""What may come back over `consume`.

    Refusal
    ├── Retryable    try later, perhaps after a given delay; nobody has the data but the caller
    │   └── Gone     whoever stood there was taken out of the configuration
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


class Gone(Retryable):
    """Nobody stands there any more, since a reload; tried again from the start, the batch goes the new way."""


class Permanent(Refusal):
    """This batch will never be taken; count it, say why, go on."""
