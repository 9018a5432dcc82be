"""Valid bytes, changed in the ways that find faults: a bit flipped, bytes set, cut off, left out, doubled many times, spliced in."""

from collections.abc import Sequence

from hypothesis import strategies as st

_TELLING = [b"\x00", b"\x7f", b"\x80", b"\xff", b"\xff" * 5, b"\xff" * 9 + b"\x01", b"\xc3\x28", b"\xed\xa0\x80"]
"""Ends of ranges, the longest varints, what is nearly UTF-8."""


@st.composite
def mutated(draw: st.DrawFn, valid: st.SearchStrategy[bytes], words: Sequence[bytes] = ()) -> bytes:
    """What `valid` gives, changed up to four times; `words` are pieces that mean something in this format. Shrinks to fewer changes."""
    data = draw(valid)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, 2**16)) % (len(data) + 1)
        size = draw(st.sampled_from([0, 1, 1, 2, 3, 8, 64]))
        piece, rest = data[at : at + size], data[at + size :]
        match draw(st.sampled_from(["insert", "flip", "set", "leave out", "cut", "repeat", "splice"])):
            case "insert":
                data = data[:at] + draw(st.sampled_from([*_TELLING, *words])) + data[at:]
            case "flip" if at < len(data):
                data = data[:at] + bytes([data[at] ^ 1 << draw(st.integers(0, 7))]) + data[at + 1 :]
            case "set":
                data = data[:at] + draw(st.binary(max_size=3)) + rest
            case "leave out":
                data = data[:at] + rest
            case "cut":
                data = data[:at]
            case "repeat":
                data = data[:at] + piece * draw(st.sampled_from([2, 3, 50])) + rest
            case "splice":
                other = draw(valid)
                data = data[:at] + other[draw(st.integers(0, 2**16)) % (len(other) + 1) :]
    return data
