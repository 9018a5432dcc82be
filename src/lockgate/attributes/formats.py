"""Names of attributes made by format, as Go makes them."""

import re

_DIRECTIVE = re.compile(r"%([-+# 0]{0,8})(\d{0,4})(?:\.(\d{0,4}))?(.?)", re.DOTALL | re.ASCII)


def go_format(template: str, arguments: list[str]) -> str:
    """Go's fmt.Sprintf for string arguments, with the noise that it makes of stray directives: `100%` becomes `100%!(NOVERB)`.

    The original formats this way, so names that people already search for carry the noise. Not imitated: `*`, `[n]` and `%q`.
    """
    left = iter(arguments)

    def directive(match: re.Match[str]) -> str:
        flags, width, precision, verb = match.groups()
        if not verb:
            return "%!(NOVERB)"
        if verb == "%":
            return "%"
        value = next(left, None)
        if value is None:
            return f"%!{verb}(MISSING)"
        if verb not in "sv":
            return f"%!{verb}(string={value})"
        if precision is not None:
            value = value[: int(precision or 0)]
        return value.ljust(int(width or 0)) if "-" in flags else value.rjust(int(width or 0))

    result = _DIRECTIVE.sub(directive, template)
    extra = ", ".join(f"string={value}" for value in left)
    return f"{result}%!(EXTRA {extra})" if extra else result
