"""Jaeger's strategies file as answers; the merging is Jaeger's own (filesource's tests of issue 5270), the JSON that of its server."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockgate.wire.protobuf import DecodeError
from lockgate.wire.sampling import as_json, decode_parameters, encode_parameters, parse_strategies


def told(file: dict[str, Any], service: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(as_json(parse_strategies(json.dumps(file)).of(service)))
    return answer


def operations(answer: dict[str, Any]) -> dict[str, float]:
    return {
        each["operation"]: each["probabilisticSampling"]["samplingRate"] for each in answer["operationSampling"]["perOperationStrategies"]
    }


HEALTH = {"operation": "/health", "type": "probabilistic", "param": 0.0}
FILE = {
    "default_strategy": {"type": "probabilistic", "param": 0.5, "operation_strategies": [HEALTH]},
    "service_strategies": [
        {"service": "half", "type": "probabilistic", "param": 0.25},
        {"service": "slow", "type": "ratelimiting", "param": 5},
        {
            "service": "own",
            "type": "probabilistic",
            "param": 0.8,
            "operation_strategies": [
                {"operation": "/health", "type": "probabilistic", "param": 1},
                {**HEALTH, "operation": "pay", "param": 0.2},
            ],
        },
        {"service": "slow-own", "type": "ratelimiting", "param": 7, "operation_strategies": [{**HEALTH, "operation": "pay", "param": 0.2}]},
    ],
}


@pytest.mark.parametrize("text", ["{}", "null", '{"service_strategies": null}'])
def test_a_file_that_says_nothing_samples_a_thousandth(text: str) -> None:
    answer = as_json(parse_strategies(text).of("any"))
    assert json.loads(answer) == {"strategyType": "PROBABILISTIC", "probabilisticSampling": {"samplingRate": 0.001}}


def test_rates_are_limited_to_whole_traces_a_second_and_the_type_is_a_word() -> None:
    file = {"service_strategies": [{"service": "s", "type": "ratelimiting", "param": 2.5}]}
    assert told(file, "s") == {"strategyType": "RATE_LIMITING", "rateLimitingSampling": {"maxTracesPerSecond": 2}}
    assert "2.5 traces a second become 2" in parse_strategies(json.dumps(file)).notes[0]


@pytest.mark.parametrize(
    ("service", "rest", "per_operation"),
    [
        pytest.param("unknown", 0.5, {"/health": 0.0}, id="the-default-strategy-is-for-services-without-one"),
        pytest.param("half", 0.25, {"/health": 0.0}, id="a-service-without-operations-has-the-default-ones-and-its-own-rate"),
        pytest.param("slow", 0.5, {"/health": 0.0}, id="a-rate-limited-service-has-them-too"),
        pytest.param("own", 0.8, {"/health": 1.0, "pay": 0.2}, id="a-service's-operation-outvotes-the-default-one"),
        pytest.param("slow-own", 0.001, {"pay": 0.2, "/health": 0.0}, id="a-rate-limited-service's-other-operations-have-jaeger's-rate"),
    ],
)
def test_default_operations_are_merged(service: str, rest: float, per_operation: dict[str, float]) -> None:
    answer = told(FILE, service)
    assert operations(answer) == per_operation
    assert answer["operationSampling"]["defaultSamplingProbability"] == rest


def test_operations_that_the_protocol_cannot_limit_are_left_out_and_said() -> None:
    limited = {"operation": "pay", "type": "ratelimiting", "param": 1}
    file = {"default_strategy": {"type": "probabilistic", "param": 1, "operation_strategies": [limited]}}
    assert told(file, "any")["operationSampling"]["perOperationStrategies"] == []
    assert parse_strategies(json.dumps(file)).notes == [
        "the default strategy, operation 'pay': left out; Jaeger's protocol limits no operation's rate"
    ]


def test_an_unknown_type_is_jaegers_default_and_said() -> None:
    file = {"service_strategies": [{"service": "s", "type": "lottery", "param": 1}]}
    assert told(file, "s")["probabilisticSampling"] == {"samplingRate": 0.001}
    assert "type 'lottery' is neither probabilistic nor ratelimiting" in parse_strategies(json.dumps(file)).notes[0]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "truncated"),
        ("[]", r"Expected `object \| null`, got `array`"),
        ('{"services": []}', "unknown field `services`"),
        (
            '{"default_strategy": {"type": "probabilistic", "param": "0.5"}}',
            r"Expected `float`, got `str` - at `\$.default_strategy.param`",
        ),
        ('{"default_strategy": {"type": "probabilistic", "param": 50}}', "the default strategy: param 50 is no probability"),
        ('{"service_strategies": [{"service": "s", "type": "ratelimiting", "param": -1}]}', "service 's': param -1 is no number"),
    ],
)
def test_what_is_no_strategies_file_is_refused_with_the_place(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_strategies(text)


@given(st.text())
def test_a_request_names_its_service(service: str) -> None:
    service = service.encode("utf-8", "replace").decode()
    assert decode_parameters(encode_parameters(service)) == service


@given(st.binary())
def test_any_bytes_are_an_answer_or_a_decode_error(encoded: bytes) -> None:
    try:
        json.loads(as_json(encoded))
    except DecodeError as error:
        assert "SamplingStrategyResponse" in str(error)
