"""Hypothesis strategy of OTLP export requests: any fields of any message, with any value that is right for them."""

from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from hypothesis import strategies as st

from lockgate.batch import Signal, message_type


def scalar(field: Any) -> st.SearchStrategy[Any]:
    match field.type:
        case FieldDescriptor.TYPE_STRING:
            return st.text(max_size=12)
        case FieldDescriptor.TYPE_BYTES:
            size = 16 if field.name == "trace_id" else 8 if field.name.endswith("span_id") else 5
            return st.sampled_from([b"", b"\xff" * size, bytes(range(size))])
        case FieldDescriptor.TYPE_DOUBLE:
            return st.floats(allow_nan=False)
        case FieldDescriptor.TYPE_BOOL:
            return st.booleans()
        case FieldDescriptor.TYPE_ENUM:
            return st.sampled_from([value.number for value in field.enum_type.values])
        case FieldDescriptor.TYPE_UINT32 | FieldDescriptor.TYPE_FIXED32:
            return st.integers(0, 2**32 - 1)
        case FieldDescriptor.TYPE_INT32 | FieldDescriptor.TYPE_SINT32:
            return st.integers(-(2**31), 2**31 - 1)
        case FieldDescriptor.TYPE_FIXED64 | FieldDescriptor.TYPE_UINT64:
            return st.integers(0, 2**64 - 1)
    return st.integers(-(2**63), 2**63 - 1)


def fill(draw: st.DrawFn, message: Any, depth: int) -> None:
    """Some of the message's fields, any of them, to any value that is right for them."""
    fields = [field for field in message.DESCRIPTOR.fields if field.type != FieldDescriptor.TYPE_MESSAGE or depth < 12]
    nested = [field for field in fields if field.type == FieldDescriptor.TYPE_MESSAGE]
    chosen = draw(st.lists(st.sampled_from(fields), max_size=4, unique_by=lambda field: field.number)) if fields else []
    if depth < 4 and nested:
        chosen.append(draw(st.sampled_from(nested)))
    for field in chosen:
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            target = getattr(message, field.name)
            if field.is_repeated:
                for _ in range(draw(st.integers(0, 2))):
                    fill(draw, target.add(), depth + 1)
            else:
                target.SetInParent()
                fill(draw, target, depth + 1)
        elif field.is_repeated:
            getattr(message, field.name).extend(draw(st.lists(scalar(field), max_size=3)))
        else:
            setattr(message, field.name, draw(scalar(field)))


@st.composite
def requests(draw: st.DrawFn) -> tuple[Signal, Any]:
    signal = draw(st.sampled_from(list(Signal)))
    message = message_type(signal)()
    fill(draw, message, 0)
    return signal, message
