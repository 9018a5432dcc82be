"""One suite for every listed component: what the contract promises, whoever wrote the part.

To add a component: one line in MINIMAL.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from support import FakeHost, Sink, context, logs

from lockgate.batch import Batch, Signal
from lockgate.collector import components
from lockgate.kit.document import Document
from lockgate.kit.settings import meanings, validate
from lockgate.pipeline.contract import Component, Connector, Custody, Exporter, Kind, Processor, Receiver
from lockgate.pipeline.errors import Permanent, Retryable
from lockgate.pipeline.needs import Connect, Exec, Kubernetes, Listen, Read, Write

NOBODY = "http://127.0.0.1:1"
"""Where nothing listens; an exporter must start, stop and refuse all the same."""

MINIMAL: dict[tuple[Kind, str], Callable[[Path], dict[str, Any]]] = {
    (Kind.RECEIVER, "filelog"): lambda tmp: {"include": [f"{tmp}/*.log"]},
    (Kind.RECEIVER, "fluentforward"): lambda tmp: {"endpoint": "127.0.0.1:0"},
    (Kind.RECEIVER, "jaeger"): lambda tmp: {"protocols": {"thrift_http": {"endpoint": "127.0.0.1:0"}}},
    (Kind.RECEIVER, "journald"): lambda tmp: {"directory": str(tmp)},
    (Kind.RECEIVER, "opencensus"): lambda tmp: {"endpoint": "127.0.0.1:0"},
    (Kind.RECEIVER, "otlp"): lambda tmp: {"protocols": {"http": {"endpoint": "127.0.0.1:0"}}},
    (Kind.RECEIVER, "prometheusremotewrite"): lambda tmp: {"endpoint": "127.0.0.1:0"},
    (Kind.RECEIVER, "raw_k8s_events"): lambda tmp: {"auth_type": "none", "api_server": NOBODY},
    (Kind.RECEIVER, "sumologic"): lambda tmp: {"endpoint": "127.0.0.1:0"},
    (Kind.PROCESSOR, "attributes"): lambda tmp: {"actions": [{"action": "insert", "key": "a", "value": 1}]},
    (Kind.PROCESSOR, "batch"): lambda tmp: {},
    (Kind.PROCESSOR, "filter"): lambda tmp: {"logs": {"exclude": {"match_type": "strict", "bodies": ["other"]}}},
    (Kind.PROCESSOR, "groupbyattrs"): lambda tmp: {},
    (Kind.PROCESSOR, "k8s_tagger"): lambda tmp: {"passthrough": True},
    (Kind.PROCESSOR, "k8sattributes"): lambda tmp: {"passthrough": True},
    (Kind.PROCESSOR, "memory_limiter"): lambda tmp: {"limit_mib": 1 << 20},
    (Kind.PROCESSOR, "resource"): lambda tmp: {"attributes": [{"action": "insert", "key": "a", "value": 1}]},
    (Kind.PROCESSOR, "source"): lambda tmp: {},
    (Kind.PROCESSOR, "sumologic"): lambda tmp: {},
    (Kind.CONNECTOR, "forward"): lambda tmp: {},
    (Kind.EXPORTER, "debug"): lambda tmp: {},
    (Kind.EXPORTER, "otlp"): lambda tmp: {"endpoint": "127.0.0.1:1", "tls": {"insecure": True}},
    (Kind.EXPORTER, "otlphttp"): lambda tmp: {"endpoint": NOBODY},
    (Kind.EXPORTER, "store"): lambda tmp: {"directory": f"{tmp}/store"},
    (Kind.EXPORTER, "sumologic"): lambda tmp: {"endpoint": f"{NOBODY}/receiver"},
    (Kind.EXTENSION, "basicauth"): lambda tmp: {"client_auth": {"username": "u", "password": "p"}},
    (Kind.EXTENSION, "bearertokenauth"): lambda tmp: {"token": "t"},
    (Kind.EXTENSION, "file_storage"): lambda tmp: {"directory": str(tmp)},
    (Kind.EXTENSION, "health_check"): lambda tmp: {"endpoint": "127.0.0.1:0"},
    (Kind.EXTENSION, "ledger"): lambda tmp: {"endpoint": "127.0.0.1:0", "state_directory": str(tmp)},
    (Kind.EXTENSION, "memory_ballast"): lambda tmp: {},
    (Kind.EXTENSION, "pprof"): lambda tmp: {"endpoint": "127.0.0.1:0"},
    (Kind.EXTENSION, "query"): lambda tmp: {"endpoint": "127.0.0.1:0", "state_directory": str(tmp)},
    (Kind.EXTENSION, "sample_cluster"): lambda tmp: {"endpoint": "127.0.0.1:0", "log_root": f"{tmp}/pods"},
}


def listed(*kinds: Kind) -> list[Any]:
    """Every listed component of these kinds that can be imported; a test below fails for one that cannot."""
    found = []
    for kind, type_name in sorted(components.all_types()):
        try:
            cls = components.find(kind, type_name)
        except components.UnusableComponent:
            continue
        if (kind, type_name) in MINIMAL and kind in (kinds or tuple(Kind)):
            found.append(pytest.param(cls, MINIMAL[kind, type_name], id=f"{kind.singular}-{type_name}"))
    return found


every = pytest.mark.parametrize(("cls", "minimal"), listed())
consumers = pytest.mark.parametrize(("cls", "minimal"), listed(Kind.PROCESSOR, Kind.CONNECTOR, Kind.EXPORTER))
passing = pytest.mark.parametrize(("cls", "minimal"), listed(Kind.PROCESSOR, Kind.CONNECTOR))


def make(cls: type[Component[Any]], minimal: Callable[[Path], dict[str, Any]], tmp_path: Path, next_: Any = None) -> Any:
    settings, problems = validate(cls.settings_type, Document(minimal(tmp_path)), ())
    assert settings is not None, problems
    signal = Signal.LOGS if cls.kind is Kind.PROCESSOR else None
    made = cls(settings, context(cls.type_name, cls.kind, signal=signal, host=FakeHost()))
    if isinstance(made, Processor):
        made.next = next_ or Sink()
    elif isinstance(made, Connector):
        made.outputs = {"logs": next_ or Sink()}
    elif isinstance(made, Receiver):
        made.outputs = {signal: Sink() for signal in cls.signals}
    return made


@asynccontextmanager
async def no_task_left() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    async with asyncio.timeout(5):
        while asyncio.all_tasks() - before:
            await asyncio.sleep(0)


def test_every_listed_component_can_be_imported() -> None:
    unusable = []
    for kind, type_name in components.all_types():
        try:
            assert components.find(kind, type_name) is not None
        except components.UnusableComponent as error:
            unusable.append(str(error))
    assert unusable == []


def test_every_listed_component_has_a_line_here() -> None:
    assert {(kind, name) for kind in Kind for name in components.BUILT_IN[kind]} == set(MINIMAL)


def models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        for field in annotation.model_fields.values():
            yield from models(field.annotation)
    else:
        for argument in get_args(annotation):
            yield from models(argument)


@every
def test_every_option_is_described_and_every_class_says_what_it_is_for(cls: type[Component[Any]], minimal: Any) -> None:
    undescribed = [
        f"{model.__name__}.{name}"
        for model in models(cls.settings_type)
        for name, field in model.model_fields.items()
        if not field.description and not meanings(model).get(name)
    ]
    undescribed += [each.__name__ for each in (cls, *models(cls.settings_type)) if not each.__doc__]
    undescribed += [] if inspect.getmodule(cls).__doc__ else [cls.__module__]
    assert undescribed == []


@every
def test_it_is_named_takes_a_signal_declares_custody_and_says_what_it_needs(
    cls: type[Component[Any]], minimal: Any, tmp_path: Path
) -> None:
    assert cls.type_name and (cls.signals or cls.kind is Kind.EXTENSION)
    assert isinstance(cls.custody, Custody)
    made = make(cls, minimal, tmp_path)
    assert all(isinstance(need, Listen | Connect | Read | Write | Exec | Kubernetes) and need.reason for need in made.settings.needs())


@every
async def test_it_starts_stops_stops_again_and_leaves_no_task(cls: type[Component[Any]], minimal: Any, tmp_path: Path) -> None:
    made = make(cls, minimal, tmp_path)
    async with no_task_left(), asyncio.timeout(20):
        async with made:
            assert made.running
        assert not made.running
        await made.__aexit__(None, None, None)


@every
async def test_stopping_what_was_never_started_does_nothing(cls: type[Component[Any]], minimal: Any, tmp_path: Path) -> None:
    async with no_task_left():
        await make(cls, minimal, tmp_path).__aexit__(None, None, None)


@consumers
async def test_before_its_start_and_after_its_stop_it_refuses_as_retryable(cls: type[Component[Any]], minimal: Any, tmp_path: Path) -> None:
    made = make(cls, minimal, tmp_path)
    assert isinstance(made, Processor | Connector | Exporter)
    with pytest.raises(Retryable, match="not running"):
        await made.consume(logs("x"))
    async with made:
        pass
    with pytest.raises(Retryable, match="not running"):
        await made.consume(logs("x"))


class Gate:
    """A consumer that waits until the test lets it return."""

    def __init__(self) -> None:
        self.entered, self.go = asyncio.Event(), asyncio.Event()
        self.got: Batch | None = None

    async def consume(self, batch: Batch) -> None:
        self.got = batch
        self.entered.set()
        await self.go.wait()


@passing
async def test_it_acknowledges_only_after_the_next_owner_has(cls: type[Component[Any]], minimal: Any, tmp_path: Path) -> None:
    if cls.custody is not Custody.PASSES:
        pytest.skip(f"takes custody: {cls.custody.value}")
    gate = Gate()
    async with no_task_left(), asyncio.timeout(10), make(cls, minimal, tmp_path, gate) as made:
        call = asyncio.create_task(made.consume(logs("x")))
        await gate.entered.wait()
        for _ in range(20):
            await asyncio.sleep(0)
        assert not call.done()
        gate.go.set()
        assert await call is None


@passing
@pytest.mark.parametrize("refusal", [Retryable("later", after=4.5), Permanent("never")], ids=["retryable", "permanent"])
async def test_refusals_travel_back_unchanged_and_nothing_is_counted_as_handed_on(
    cls: type[Component[Any]], minimal: Any, tmp_path: Path, refusal: Exception
) -> None:
    if cls.custody is not Custody.PASSES:
        pytest.skip(f"takes custody: {cls.custody.value}")
    sink = Sink(refusal)
    async with make(cls, minimal, tmp_path, sink) as made:
        with pytest.raises(type(refusal)) as raised:
            await made.consume(logs("x"))
        assert raised.value is refusal
        assert made.context.metrics.value("otelcol_processor_outgoing_items") == 0
        await made.consume(logs("x"))
    assert sink.count == 1


@passing
async def test_a_batch_is_never_changed_and_keeps_its_records_and_its_id(cls: type[Component[Any]], minimal: Any, tmp_path: Path) -> None:
    sink, given = Sink(), logs("one", "two", k8s_pod_name="web-0")
    read = given.message.SerializeToString()
    before = (given.payload, given.count, given.id)
    async with make(cls, minimal, tmp_path, sink) as made:
        await made.consume(given)
        await made.consume(given)
    assert (given.payload, given.count, given.id) == before and given.message.SerializeToString() == read
    assert sink.bodies() == ["one", "two"] * 2
    assert {batch.id for batch in sink.batches} == {given.id}
    assert sink.batches[0].payload == sink.batches[1].payload


@passing
async def test_cancelling_the_caller_cancels_the_delivery_and_leaves_no_task(
    cls: type[Component[Any]], minimal: Any, tmp_path: Path
) -> None:
    if cls.custody is not Custody.PASSES:
        pytest.skip(f"takes custody: {cls.custody.value}")
    gate = Gate()
    async with asyncio.timeout(10), make(cls, minimal, tmp_path, gate) as made:
        async with no_task_left():
            call = asyncio.create_task(made.consume(logs("x")))
            await gate.entered.wait()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        gate.go.set()
        await made.consume(logs("y"))
