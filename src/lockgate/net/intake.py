"""What becomes of an export request, whichever transport brought it: checked, identified, handed on, acknowledged."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from lockgate.batch import Batch, Signal, count_records
from lockgate.kit.sometimes import Sometimes
from lockgate.net.batch_ids import is_id, parts_in
from lockgate.net.compression import OFFLOAD_BYTES
from lockgate.pipeline.contract import Context, Receiver
from lockgate.pipeline.errors import Permanent, Refusal, Retryable
from lockgate.wire.protobuf import DecodeError


class Decode(Protocol):
    """Turns a body into the bytes of an export request; raises DecodeError."""

    def __call__(self, body: bytes, signal: Signal) -> bytes: ...


class Intake:
    """The one way from a transport into the pipelines.

    A request that carries an id which is under way already (its client hung up and sent it again) joins the one that runs, and shares its
    outcome. Equal bytes alone are no sign of that: two programs may well say the same, and neither must be lost. A merged batch goes on in
    its parts: each keeps its id over what processors change, and what was taken before, alone or in other company, is known again.
    """

    def __init__(self, receiver: Receiver[Any], count_refused: Callable[[Batch, str], None], ack_timeout: float) -> None:
        self._receiver, self._count_refused, self._ack_timeout = receiver, count_refused, ack_timeout
        self._running: dict[tuple[Signal, str, str], asyncio.Future[None]] = {}

    def serves(self, signal: Signal) -> bool:
        """Whether a pipeline takes this signal from here."""
        return signal in self._receiver.outputs

    async def take(
        self,
        signal: Signal,
        body: bytes,
        *,
        peer: str,
        transport: str,
        batch_id: str = "",
        batch_parts: str = "",
        decode: Decode | None = None,
    ) -> None:
        """`read` and `hand_on`."""
        await self.hand_on(await self.read(signal, body, peer=peer, ids=(batch_id, batch_parts), decode=decode), transport)

    async def read(
        self, signal: Signal, body: bytes, *, peer: str, ids: tuple[str, str] = ("", ""), decode: Decode | None = None
    ) -> list[Batch]:
        """`read_request`, in a thread where the body is not small."""
        if len(body) > OFFLOAD_BYTES:
            return await self._receiver.in_thread(read_request, signal, peer, ids, decode, body)
        return read_request(signal, peer, ids, decode, body)

    async def hand_on(self, batches: Sequence[Batch], transport: str) -> None:
        """Returns when all is acknowledged. Raises Permanent where something is never to be sent again, Retryable where something is."""
        batches = [batch for batch in batches if batch.count]
        if len(batches) == 1:
            await self._hand_on(batches[0], transport)
            return
        outcomes = await asyncio.gather(*(self._hand_on(batch, transport) for batch in batches), return_exceptions=True)
        if refusals := [outcome for outcome in outcomes if outcome is not None]:
            # What may pass later is said first: the parts that were taken are known when they come again.
            raise min(refusals, key=lambda refusal: isinstance(refusal, Permanent))

    async def _hand_on(self, batch: Batch, transport: str) -> None:
        key = (batch.signal, batch.peer, batch.id)
        if (running := self._running.get(key)) is not None:
            # Bounded by the one that runs.
            await asyncio.shield(running)
            return
        outcome = self._running[key] = asyncio.get_running_loop().create_future()
        try:
            await self._emit(batch, transport)
        except Refusal as refusal:
            outcome.set_exception(refusal)
            outcome.exception()  # retrieved: usually nobody has joined
            raise
        except BaseException:
            outcome.set_exception(Retryable("the request was broken off; try again"))
            outcome.exception()
            raise
        else:
            outcome.set_result(None)
        finally:
            del self._running[key]

    async def _emit(self, batch: Batch, transport: str) -> None:
        try:
            async with asyncio.timeout(self._ack_timeout):
                await self._receiver.emit(batch, transport)
        except TimeoutError:
            self._count_refused(batch, transport)
            raise Retryable(f"not acknowledged within {self._ack_timeout:g} s; try again") from None


class StreamRefusals:
    """Counts by reason what a receiver refuses whose clients have no answer to each request, and logs it now and then."""

    def __init__(self, context: Context, protocol: str) -> None:
        self._context, self._protocol, self._sometimes = context, protocol, Sometimes(context.clock)

    def __call__(self, reason: str, text: str, peer: str) -> None:
        self._context.metrics.counter(
            "lockgate_receiver_refused_requests", "requests refused at the door", receiver=self._context.id, reason=reason
        ).add()
        if (kept_back := self._sometimes.now(reason)) is not None:
            more = f" (and {kept_back} more like it)" if kept_back else ""
            self._context.logger.warning("%s from %s: %s%s", self._protocol, peer or "a client", text, more)


def read_request(signal: Signal, peer: str, ids: tuple[str, str], decode: Decode | None, body: bytes) -> list[Batch]:
    """The batch that a request brings, or the parts that it was merged of. `ids` are what its headers say (batch_ids.py), or empty.

    `body` is inflated, and an encoded export request unless `decode` makes it one. Raises DecodeError.
    """
    batch_id, batch_parts = ids
    payload = decode(body, signal) if decode is not None else body
    position, batches = 0, list[Batch]()
    try:
        for part in parts_in(batch_parts, len(payload)):
            piece = payload[position : position + part.size]
            batches.append(Batch(signal, piece, count_records(signal, piece), part.id, peer))
            position += part.size
    except DecodeError:  # not the parts of this payload
        batches = []
    return batches or [Batch(signal, payload, count_records(signal, payload), batch_id if is_id(batch_id) else uuid.uuid4().hex, peer)]
