"""Jaeger's sampling strategies: its strategies file (JSON) as the answers that clients get, in protobuf and in JSON.

The messages are jaeger-idl's `api_v2/sampling.proto`; the file and how its parts are merged are Jaeger's
(https://www.jaegertracing.io/docs/latest/sampling/#file-based-sampling-configuration), as its `filesource` and the collector's do it since
https://github.com/jaegertracing/jaeger/issues/5270.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.message import DecodeError as ProtobufError
from google.protobuf.message import Message

from lockgate.wire.protobuf import DecodeError

GET_SAMPLING_STRATEGY = "/jaeger.api_v2.SamplingManager/GetSamplingStrategy"
"""The path of the one method of Jaeger's gRPC service."""
DEFAULT_PROBABILITY = 0.001
"""Jaeger's, where a strategy says nothing (or nothing that can be used)."""

_DOUBLE, _INT32, _STRING = FieldDescriptorProto.TYPE_DOUBLE, FieldDescriptorProto.TYPE_INT32, FieldDescriptorProto.TYPE_STRING
_PACKAGE = "jaeger.api_v2"
_MESSAGES: dict[str, dict[str, tuple[int, int | str]]] = {
    "SamplingStrategyParameters": {"serviceName": (1, _STRING)},
    "ProbabilisticSamplingStrategy": {"samplingRate": (1, _DOUBLE)},
    "RateLimitingSamplingStrategy": {"maxTracesPerSecond": (1, _INT32)},
    "OperationSamplingStrategy": {"operation": (1, _STRING), "probabilisticSampling": (2, "ProbabilisticSamplingStrategy")},
    "PerOperationSamplingStrategies": {
        "defaultSamplingProbability": (1, _DOUBLE),
        "defaultLowerBoundTracesPerSecond": (2, _DOUBLE),
        "perOperationStrategies": (3, "OperationSamplingStrategy"),
        "defaultUpperBoundTracesPerSecond": (4, _DOUBLE),
    },
    "SamplingStrategyResponse": {
        "strategyType": (1, "SamplingStrategyType"),
        "probabilisticSampling": (2, "ProbabilisticSamplingStrategy"),
        "rateLimitingSampling": (3, "RateLimitingSamplingStrategy"),
        "operationSampling": (4, "PerOperationSamplingStrategies"),
    },
}
"""sampling.proto: message -> field -> number and type."""


def _describe() -> FileDescriptorProto:
    file = FileDescriptorProto(name="sampling.proto", package=_PACKAGE, syntax="proto3")
    enum = file.enum_type.add(name="SamplingStrategyType")
    enum.value.add(name="PROBABILISTIC", number=0)
    enum.value.add(name="RATE_LIMITING", number=1)
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for key, (number, kind) in fields.items():
            made = message.field.add(name=key, json_name=key, number=number)
            made.label = made.LABEL_REPEATED if key == "perOperationStrategies" else made.LABEL_OPTIONAL
            if isinstance(kind, str):
                made.type = made.TYPE_ENUM if kind == enum.name else made.TYPE_MESSAGE
                made.type_name = f".{_PACKAGE}.{kind}"
            else:
                made.type = FieldDescriptorProto.Type.ValueType(kind)
    return file


# A pool of its own: others in this process may have Jaeger's files by the same names.
_pool = descriptor_pool.DescriptorPool()
_pool.Add(_describe())
_Parameters, _Response = (
    message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
    for name in ("SamplingStrategyParameters", "SamplingStrategyResponse")
)


def encode_parameters(service: str) -> bytes:
    """A SamplingStrategyParameters that asks for this service's strategy."""
    return _Parameters(serviceName=service).SerializeToString()


def decode_parameters(request: bytes) -> str:
    """The service that this SamplingStrategyParameters asks for. Raises DecodeError."""
    parameters: Any = _parse(_Parameters, request)
    return str(parameters.serviceName)


def as_json(response: bytes) -> str:
    """A SamplingStrategyResponse as clients are used to it: `strategyType` always there, and a word. Raises DecodeError.

    So Jaeger answers (`SamplingStrategyResponseToJSON`), because its clients refuse a number; the collector leaves PROBABILISTIC out, and
    says 1 for RATE_LIMITING.
    """
    return json_format.MessageToJson(_parse(_Response, response), always_print_fields_with_no_presence=True, indent=None)


def _parse(kind: type[Message], encoded: bytes) -> Message:
    try:
        return kind.FromString(encoded)
    except ProtobufError as error:
        raise DecodeError(f"no {kind.DESCRIPTOR.name}: {error}") from None


class _Strategy(msgspec.Struct, forbid_unknown_fields=True):
    type: str = ""
    param: float = 0.0


class _Operation(_Strategy):
    operation: str = ""


class _Service(_Strategy):
    service: str = ""
    operation_strategies: list[_Operation] | None = None


class _File(msgspec.Struct, forbid_unknown_fields=True):
    default_strategy: _Service | None = None
    service_strategies: list[_Service] | None = None


@dataclass(slots=True)
class Strategies:
    """What to answer each service: encoded SamplingStrategyResponses."""

    default: bytes
    services: dict[str, bytes] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What of the file is not done as it says."""

    def of(self, service: str) -> bytes:
        """The answer for this service."""
        return self.services.get(service, self.default)


def parse_strategies(text: str) -> Strategies:
    """A strategies file, merged. Raises ValueError that says what cannot be used, and where."""
    try:
        found = msgspec.json.decode(text, type=_File | None) or _File()
    except msgspec.DecodeError as error:
        raise ValueError(f"no strategies file of Jaeger's: {error}") from None
    notes: list[str] = []
    default = _response(found.default_strategy or _Service("probabilistic", DEFAULT_PROBABILITY), "the default strategy", notes)
    services = {}
    for strategy in found.service_strategies or ():
        response = _response(strategy, f"service {strategy.service!r}", notes)
        if default.HasField("operationSampling"):
            _merge(response, default.operationSampling)
        services[strategy.service] = response.SerializeToString()
    return Strategies(default.SerializeToString(), services, notes)


def _merge(response: Any, defaults: Any) -> None:
    """The default strategy's operations apply to a service, too, where it has none of their names."""
    own = response.operationSampling
    if not response.HasField("operationSampling"):
        own.defaultSamplingProbability = defaults.defaultSamplingProbability
        if response.HasField("probabilisticSampling"):
            own.defaultSamplingProbability = response.probabilisticSampling.samplingRate
    named = {each.operation for each in own.perOperationStrategies}
    own.perOperationStrategies.extend(each for each in defaults.perOperationStrategies if each.operation not in named)


def _response(strategy: _Service, where: str, notes: list[str]) -> Any:
    response: Any = _Response()
    match strategy.type:
        case "probabilistic":
            response.probabilisticSampling.samplingRate = _probability(strategy, where)
        case "ratelimiting":
            if not 0 <= strategy.param < 1 << 31:
                raise ValueError(f"{where}: param {strategy.param:g} is no number of traces a second")
            response.strategyType = 1
            response.rateLimitingSampling.maxTracesPerSecond = int(strategy.param)
            if strategy.param % 1:
                notes.append(f"{where}: {strategy.param:g} traces a second become {int(strategy.param)}; Jaeger's protocol has whole ones")
        case other:
            notes.append(
                f"{where}: type {other!r} is neither probabilistic nor ratelimiting; {DEFAULT_PROBABILITY} of its traces are taken"
            )
            response.probabilisticSampling.samplingRate = DEFAULT_PROBABILITY
    if strategy.operation_strategies:
        _add_operations(response, strategy.operation_strategies, where, notes)
    return response


def _add_operations(response: Any, operations: list[_Operation], where: str, notes: list[str]) -> None:
    sampling = response.operationSampling
    has_rate = response.HasField("probabilisticSampling")
    sampling.defaultSamplingProbability = response.probabilisticSampling.samplingRate if has_rate else DEFAULT_PROBABILITY
    for each in operations:
        here = f"{where}, operation {each.operation!r}"
        rate = DEFAULT_PROBABILITY
        match each.type:
            case "probabilistic":
                rate = _probability(each, here)
            case "ratelimiting":
                notes.append(f"{here}: left out; Jaeger's protocol limits no operation's rate")
                continue
            case other:
                notes.append(f"{here}: type {other!r} is not probabilistic; {DEFAULT_PROBABILITY} of its traces are taken")
        sampling.perOperationStrategies.add(operation=each.operation).probabilisticSampling.samplingRate = rate


def _probability(strategy: _Strategy, where: str) -> float:
    if not 0 <= strategy.param <= 1:
        raise ValueError(f"{where}: param {strategy.param:g} is no probability; it is from 0 to 1")
    return strategy.param
