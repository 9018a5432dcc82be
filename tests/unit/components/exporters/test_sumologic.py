"""The sumologic exporter against real HTTP: formats, headers, what each answer means, and what a secret URL must not do."""

import asyncio
import gzip
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from pydantic import ValidationError
from support import FakeHost, Sink, context
from support.otlp import NANO, log_batch, made, metric_request, set_attributes, span_batch
from support.process import free_port

from lockgate.batch import Batch, Signal, merge
from lockgate.components.exporters.sumologic.exporter import SumologicExporter, SumologicSettings
from lockgate.components.exporters.sumologic.formats import decomposed, go_number, log_requests, prometheus_requests
from lockgate.components.receivers.sumologic import SumologicReceiver
from lockgate.components.receivers.sumologic import SumologicSettings as ReceiverSettings
from lockgate.pipeline.contract import Kind
from lockgate.pipeline.errors import Permanent, Retryable

SECRET = "ZaVnC4dhaV3"
BUDGET = {
    "id": "KMZJI-FCDPN-4KHKD",
    "code": "budget.exceeded",
    "status": 200,
    "message": "Message(s) in the request dropped due to exceeded budget.",
}


class Source:
    """A source that answers as it is told, one answer per request, then 200."""

    def __init__(self, *answers: web.Response) -> None:
        self.answers, self.requests = list(answers), list[tuple[str, Any, bytes]]()

    async def __call__(self, request: web.BaseRequest) -> web.Response:
        self.requests.append((request.path, request.headers.copy(), await request.read()))
        return self.answers.pop(0) if self.answers else web.Response()


@asynccontextmanager
async def served(handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    runner = web.ServerRunner(web.Server(handler, access_log=None))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


def exporter(endpoint: str, **settings: Any) -> SumologicExporter:
    settings.setdefault("sending_queue", {"enabled": False})
    settings.setdefault("retry_on_failure", {"enabled": False})
    parsed = SumologicSettings.model_validate({"endpoint": endpoint, "compression": "none", **settings})
    return SumologicExporter(parsed, context("sumologic", Kind.EXPORTER))


def counted(exporter: SumologicExporter, event: str, items: str = "log_records") -> float:
    return exporter.context.metrics.value(f"otelcol_exporter_{event}_{items}")


@pytest.mark.parametrize(
    ("endpoint", "format", "url"),
    [
        pytest.param("https://h/receiver", "otlp", "https://h/receiver/v1/logs", id="mock"),
        pytest.param("https://h/receiver/v1/otlp/TOKEN==/", "otlp", "https://h/receiver/v1/otlp/TOKEN==/v1/logs", id="otlp-source"),
        pytest.param("https://h/x/v1/logs", "otlp", "https://h/x/v1/logs", id="already-there"),
        pytest.param("https://h/receiver/v1/http/T", "json", "https://h/receiver/v1/http/T", id="json-as-it-is"),
        pytest.param("https://h/receiver/v1/http/T", "text", "https://h/receiver/v1/http/T", id="text-as-it-is"),
    ],
)
def test_the_url_follows_from_endpoint_and_format(endpoint: str, format: str, url: str) -> None:
    assert SumologicSettings.model_validate({"endpoint": endpoint, "log_format": format}).url(Signal.LOGS) == url


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        pytest.param({}, "write the URL of an HTTP source", id="no-endpoint"),
        pytest.param({"endpoint": "https://h", "metric_format": "carbon2"}, "no longer supported", id="carbon2"),
        pytest.param({"endpoint": "h:443"}, "scheme", id="no-scheme"),
        pytest.param({"endpoint": "https://h", "log_format": "xml"}, "otlp", id="unknown-format"),
    ],
)
def test_settings_that_cannot_work_say_what_to_write(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        SumologicSettings.model_validate(settings)


def test_json_lines_hold_attributes_and_body_and_headers_the_resource() -> None:
    resource = {"_sourceCategory": "k8s/shop", "_sourceName": "cart", "_sourceHost": "n\n1", "pod": "a=b,c\nd", "empty": "", "z": 1}
    batch = log_batch(("x", {"a": 1}), ({"k": ["v", None]}, {}), ("", {"only": True}), (None, {}), (0, {}), resource=resource)
    (request,) = log_requests(batch, "json", 1 << 20)
    assert request.body.decode().split("\n") == ['{"a":1,"log":"x"}', '{"log":{"k":["v",null]}}', '{"only":true}', "{}", '{"log":0}']
    assert dict(request.headers) == {
        "X-Sumo-Host": "n_1",
        "X-Sumo-Name": "cart",
        "X-Sumo-Category": "k8s/shop",
        "X-Sumo-Fields": "pod=a:b_c_d, z=1",
    }
    assert request.count == 5


def test_text_lines_are_the_bodies_as_text() -> None:
    batch = log_batch("two\nlines", 1.5, True, {"a": b"x"}, [1, "b"], math.inf)
    (request,) = log_requests(batch, "text", 1 << 20)
    assert request.body == b'two\nlines\n1.5\ntrue\n{"a":"eA=="}\n[1,"b"]\n+Inf'


def test_a_request_never_mixes_resources_and_stays_below_its_bound() -> None:
    several = merge(
        [log_batch("a" * 400, "b" * 400, "c" * 400, resource={"pod": "1"}), log_batch("d", "e" * 5000, "f", resource={"pod": "2"})]
    )
    requests = list(log_requests(several, "text", 1024))
    assert [(dict(r.headers)["X-Sumo-Fields"], r.count, len(r.body)) for r in requests] == [
        ("pod=1", 2, 801),
        ("pod=1", 1, 400),
        ("pod=2", 1, 1),
        ("pod=2", 1, 5000),
        ("pod=2", 1, 1),
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (-0.0, "-0"), (1.0, "1"), (100.0, "100"), (123456.0, "123456"), (1234567.0, "1.234567e+06"), (1e6, "1e+06"), (0.1, "0.1"),
     (0.0001, "0.0001"), (0.00001, "1e-05"), (1e100, "1e+100"), (-2.5, "-2.5"), (5e-324, "5e-324"), (math.nan, "NaN"), (-math.inf, "-Inf")],
)  # fmt: skip
def test_numbers_are_written_as_go_writes_them(value: float, text: str) -> None:
    assert go_number(value) == text


def distribution_batch() -> Batch:
    request, scope = metric_request({"_sourceCategory": "c", "pod.name": 'p"1'})
    gauge = scope.metrics.add(name="cpu usage").gauge.data_points.add(time_unix_nano=NANO, as_double=0.5)
    set_attributes(gauge.attributes, {"pod.name": "point", "dash-é": "x\\y"})
    scope.metrics.add(name="n").sum.data_points.add(time_unix_nano=NANO, as_int=7)
    histogram = scope.metrics.add(name="h").histogram.data_points
    histogram.add(time_unix_nano=NANO, count=6, sum=4.5, explicit_bounds=[0.5, 1], bucket_counts=[1, 2, 3])
    histogram.add(time_unix_nano=NANO, count=1, explicit_bounds=[], bucket_counts=[1])
    summary = scope.metrics.add(name="s").summary.data_points.add(time_unix_nano=NANO, count=2, sum=3)
    summary.quantile_values.add(quantile=0.5, value=1.5)
    scope.metrics.add(name="e").exponential_histogram.data_points.add(time_unix_nano=NANO, count=1)
    return made(Signal.METRICS, request, 6)


def test_metrics_become_prometheus_text() -> None:
    (request,) = prometheus_requests(distribution_batch(), 1 << 20)
    common = '_sourceCategory="c",pod.name="p\\"1"'
    stamp = NANO // 1_000_000
    assert request.body.decode().split("\n") == [
        f'cpu_usage{{_sourceCategory="c",pod.name="point",dash-_="x\\\\y"}} 0.5 {stamp}',
        f"n{{{common}}} 7 {stamp}",
        f'h_bucket{{{common},le="0.5"}} 1 {stamp}',
        f'h_bucket{{{common},le="1"}} 3 {stamp}',
        f'h_bucket{{{common},le="+Inf"}} 6 {stamp}',
        f"h_sum{{{common}}} 4.5 {stamp}",
        f"h_count{{{common}}} 6 {stamp}",
        f'h_bucket{{{common},le="+Inf"}} 1 {stamp}',
        f"h_count{{{common}}} 1 {stamp}",
        f's{{{common},quantile="0.5"}} 1.5 {stamp}',
        f"s_sum{{{common}}} 3 {stamp}",
        f"s_count{{{common}}} 2 {stamp}",
    ]
    assert (request.count, request.headers) == (5, (("X-Sumo-Category", "c"),))


def test_doubles_in_labels_and_headers_are_text_as_pdata_writes_it_not_as_printf_does() -> None:
    message, scope = metric_request({"_sourceHost": 1e6, "ratio": 5.0})
    histogram = scope.metrics.add(name="h").histogram.data_points
    histogram.add(time_unix_nano=0, count=3, sum=2e6, explicit_bounds=[0.00001, 1e6], bucket_counts=[1, 1, 1])
    (request,) = prometheus_requests(made(Signal.METRICS, message, 1), 1 << 20)
    assert request.body.decode().split("\n") == [
        'h_bucket{_sourceHost="1000000",ratio="5",le="0.00001"} 1 0',
        'h_bucket{_sourceHost="1000000",ratio="5",le="1000000"} 2 0',
        'h_bucket{_sourceHost="1000000",ratio="5",le="+Inf"} 3 0',
        'h_sum{_sourceHost="1000000",ratio="5"} 2e+06 0',
        'h_count{_sourceHost="1000000",ratio="5"} 3 0',
    ]
    assert request.headers == (("X-Sumo-Host", "1000000"),)
    (request,) = log_requests(log_batch(5.0, resource={"ratio": 1e6}), "text", 1 << 20)
    assert (request.body, request.headers) == (b"5", (("X-Sumo-Fields", "ratio=1000000"),))


def test_histograms_and_summaries_decompose_at_the_end_of_their_scope() -> None:
    batch = distribution_batch()
    changed = decomposed(batch, histograms=True, summaries=True)
    (scope,) = changed.message.resource_metrics[0].scope_metrics
    assert [(m.name, m.WhichOneof("data")) for m in scope.metrics] == [
        ("cpu usage", "gauge"), ("n", "sum"), ("e", "exponential_histogram"),
        ("h_sum", "gauge"), ("h_count", "gauge"), ("h_bucket", "gauge"), ("s", "gauge"), ("s_count", "sum"), ("s_sum", "sum"),
    ]  # fmt: skip
    buckets = [(p.as_int, [a.value.double_value for a in p.attributes if a.key == "le"]) for p in scope.metrics[5].gauge.data_points]
    assert buckets == [(1, [0.5]), (3, [1.0]), (6, [math.inf]), (1, [math.inf])]
    assert [p.as_double for p in scope.metrics[3].gauge.data_points] == [4.5]
    assert changed.count == 3 + 1 + 2 + 4 + 1 + 1 + 1
    assert batch.message.resource_metrics[0].scope_metrics[0].metrics[2].HasField("histogram"), "the batch itself is not changed"
    assert decomposed(batch, histograms=False, summaries=False) is batch


async def test_requests_carry_client_type_encoding_and_no_source_headers_for_otlp() -> None:
    source = Source()
    async with served(source) as url, exporter(f"{url}/receiver", client="k8s_4.9", compression="gzip") as it:
        batch = log_batch("x", resource={"_sourceCategory": "c"})
        await it.consume(batch)
        await it.consume(span_batch("s"))
    (path, headers, body), (traces_path, *_) = source.requests
    assert (path, traces_path) == ("/receiver/v1/logs", "/receiver/v1/traces")
    assert (headers["X-Sumo-Client"], headers["Content-Type"], headers["Content-Encoding"]) == ("k8s_4.9", "application/x-protobuf", "gzip")
    assert "X-Sumo-Category" not in headers
    # aiohttp's server inflates by itself; a raw body is as good a proof.
    assert body == batch.payload or gzip.decompress(body) == batch.payload
    assert counted(it, "sent") == 1 and counted(it, "sent", "spans") == 1


@pytest.mark.parametrize("status", [429, 500, 503, 401, 404, 302])
async def test_what_may_pass_later_is_retryable_and_names_no_secret(status: int) -> None:
    source = Source(web.Response(status=status, headers={"Retry-After": "7"}))
    async with served(source) as url, exporter(f"{url}/receiver/v1/http/{SECRET}", log_format="json") as it:
        with pytest.raises(Retryable, match=str(status)) as raised:
            await it.consume(log_batch("x"))
    assert raised.value.after == 7
    assert SECRET not in str(raised.value)
    assert counted(it, "send_failed") == 1


async def test_401_shows_in_the_status_until_it_is_over_and_the_secret_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    source = Source(web.Response(status=401), web.Response(status=401))
    retry = {"enabled": True, "initial_interval": "20ms", "max_interval": "20ms"}
    async with served(source) as url, exporter(f"{url}/receiver/v1/http/{SECRET}", log_format="json", retry_on_failure=retry) as it:
        sending = asyncio.ensure_future(it.consume(log_batch("x")))
        async with asyncio.timeout(5):
            while not it.context.status.blocked:
                await asyncio.sleep(0.005)
        (reason, _), *_ = it.context.status.blocked.values()
        await sending
    assert "token or the credentials are not accepted" in reason
    assert not it.context.status.blocked
    assert SECRET not in caplog.text + reason + it.context.metrics.render() + repr(it.context.status.blocked)


async def test_no_connection_is_retryable_and_names_no_secret() -> None:
    async with exporter(f"http://127.0.0.1:{free_port()}/receiver/v1/http/{SECRET}") as it:
        with pytest.raises(Retryable) as raised:
            await it.consume(log_batch("x"))
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize("status", [400, 413])
async def test_what_never_passes_is_permanent_and_counted(status: int) -> None:
    async with served(Source(web.Response(status=status, text="bad\nthing"))) as url, exporter(url) as it:
        with pytest.raises(Permanent, match="bad thing"):
            await it.consume(log_batch("x", "y"))
    assert (counted(it, "send_failed"), counted(it, "sent")) == (2, 0)


@pytest.mark.parametrize(
    ("body", "refused"),
    [
        pytest.param(BUDGET, 3, id="code"),
        pytest.param({"id": "K-1", "status": 200, "errors": [{"code": "budget.exceeded", "message": "over"}]}, 3, id="errors"),
        pytest.param({"code": 200, "errors": [{"code": "budget.exceeded"}]}, 3, id="number-code"),
        pytest.param({"partialSuccess": {"rejectedLogRecords": "2", "errorMessage": "too old"}}, 2, id="otlp-partial"),
        pytest.param({"partialSuccess": {}}, 0, id="otlp-success"),
        pytest.param({"status": 200, "id": "K-1"}, 0, id="nothing-wrong"),
        pytest.param("just text", 0, id="text"),
    ],
)  # fmt: skip
async def test_a_refusal_in_the_body_of_a_200_is_counted_and_logged_once(body: Any, refused: int, caplog: pytest.LogCaptureFixture) -> None:
    answers = [web.json_response(body) for _ in range(3)]
    async with served(Source(*answers)) as url, exporter(url) as it:
        for _ in range(3):
            await it.consume(log_batch("x", "y", "z"))
    assert (counted(it, "send_failed"), counted(it, "sent")) == (3 * refused, 9 - 3 * refused)
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == (1 if refused else 0)


async def test_only_the_requests_that_failed_are_sent_again() -> None:
    source = Source(web.Response(), web.Response(status=503), web.Response(), web.Response(status=400, text="no"))
    batch = merge([log_batch(name, resource={"pod": name}) for name in ("one", "two", "three")])
    retry = {"enabled": True, "initial_interval": "1ms"}
    async with served(source) as url, exporter(url, log_format="text", retry_on_failure=retry) as it:
        await it.consume(batch)
    assert [body for *_, body in source.requests] == [b"one", b"two", b"two", b"three"]
    assert (counted(it, "sent"), counted(it, "send_failed")) == (2, 1)
    ids = [headers["X-Lockgate-Batch-Id"] for _, headers, _ in source.requests]
    assert ids[1] == ids[2] and len(set(ids)) == 3


async def test_exponential_histograms_are_counted_where_prometheus_text_cannot_hold_them() -> None:
    async with served(Source()) as url, exporter(url, metric_format="prometheus") as it:
        await it.consume(distribution_batch())
    assert (counted(it, "sent", "metric_points"), counted(it, "send_failed", "metric_points")) == (5, 1)


async def test_sticky_sessions_send_the_balancers_cookie_back() -> None:
    source = Source(web.Response(headers={"Set-Cookie": "AWSALB=abc; Path=/"}))
    async with served(source) as url, exporter(url, sticky_session_enabled=True) as it:
        await it.consume(log_batch("x"))
        await it.consume(log_batch("y"))
    assert [headers.get("Cookie") for _, headers, _ in source.requests] == [None, "AWSALB=abc"]


@asynccontextmanager
async def backend(**settings: Any) -> AsyncIterator[tuple[str, Sink]]:
    receiver = SumologicReceiver(
        ReceiverSettings.model_validate({"endpoint": "127.0.0.1:0", **settings}), context("sumologic", Kind.RECEIVER, host=FakeHost())
    )
    sink = Sink()
    receiver.outputs = dict.fromkeys(Signal, sink)
    async with receiver:
        yield f"http://127.0.0.1:{receiver.port}", sink


@pytest.mark.parametrize("compression", ["none", "gzip", "deflate", "zstd"])
async def test_otlp_arrives_as_it_was_sent_with_its_id(compression: str) -> None:
    sent = [log_batch("x", resource={"a": "b"}), span_batch("s"), distribution_batch()]
    async with backend() as (url, sink), exporter(f"{url}/receiver/v1/otlp/T", compression=compression) as it:
        for batch in sent:
            await it.consume(batch)
    assert [(b.signal, b.payload, b.count, b.id) for b in sink.batches] == [(b.signal, b.payload, b.count, b.id) for b in sent]


async def test_json_arrives_with_body_attributes_and_resource() -> None:
    resource = {"_sourceCategory": "k8s/shop", "pod": "p", "namespace": "shop"}
    batch = log_batch(("line", {"stream": "stdout", "n": 2}), ({"deep": [1]}, {}), resource=resource)
    async with backend() as (url, sink), exporter(f"{url}/receiver/v1/http/T", log_format="json", compression="zstd") as it:
        await it.consume(batch)
    (got,) = sink.batches
    (entry,) = got.message.resource_logs
    assert {a.key: a.value.string_value for a in entry.resource.attributes} == resource
    first, second = entry.scope_logs[0].log_records
    assert first.body.string_value == "line"
    assert {a.key for a in first.attributes} == {"stream", "n"}
    assert second.body.kvlist_value.values[0].key == "deep"
    assert first.observed_time_unix_nano > 0


async def test_prometheus_text_arrives_as_points() -> None:
    async with backend() as (url, sink), exporter(f"{url}/receiver/v1/http/T", metric_format="prometheus") as it:
        await it.consume(distribution_batch())
    (got,) = sink.batches
    metrics = {m.name: m for m in got.message.resource_metrics[0].scope_metrics[0].metrics}
    assert got.count == 12
    (point,) = metrics["cpu_usage"].gauge.data_points
    labels = {a.key: a.value.string_value for a in point.attributes}
    assert (point.as_double, point.time_unix_nano, labels) == (0.5, NANO, {"_sourceCategory": "c", "pod.name": "point", "dash-_": "x\\y"})


async def test_a_refusal_behind_the_receiver_comes_back_to_the_exporter() -> None:
    async with backend() as (url, sink), exporter(f"{url}/receiver/v1/http/T", log_format="text") as it:
        sink.refusals = [Retryable("full", 3.0), Permanent("never")]
        with pytest.raises(Retryable) as raised:
            await it.consume(log_batch("x"))
        assert raised.value.after == 3
        with pytest.raises(Permanent, match="never"):
            await it.consume(log_batch("x"))
    assert sink.count == 0
