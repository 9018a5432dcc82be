"""Go's regular expressions: RE2, in time linear in the text, because the text is whatever a stranger wrote.

Patterns mean here what they mean in a collector's configuration: `\\d`, `\\w` and `\\s` are ASCII, `$` is the very end, and what RE2 does
not have (look-around, back-references) is an error, never a silent change to Python's backtracking `re`.
"""

import re
from typing import Annotated, cast

import re2
from pydantic import AfterValidator

re2.set_fallback_notification(re2.FALLBACK_EXCEPTION)


def compile(pattern: str) -> re.Pattern[str]:
    """The compiled pattern, with the methods of `re.Pattern`; raises ValueError with RE2's reason."""
    try:
        return cast(re.Pattern[str], re2.compile(pattern, re2.ASCII))
    except (re2.error, re2.RegexError) as error:
        raise ValueError(f"{pattern!r} is no regular expression that Go (RE2) knows: {error}") from error


def _checked(pattern: str) -> str:
    compile(pattern)
    return pattern


Regex = Annotated[str, AfterValidator(_checked)]
"""A setting that holds a regular expression, checked but kept as its text."""
