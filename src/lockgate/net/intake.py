"""What becomes of an export request, whichever transport brought it: checked, identified, handed on, acknowledged."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Callable
from typing import Any, Protocol

from lockgate.batch import Batch, Signal, count_records
from lockgate.net.compression import OFFLOAD_BYTES
from lockgate.pipeline.contract import Receiver
from lockgate.pipeline.errors import Refusal, Retryable

_ID = re.compile(r"[0-9A-Za-z_.:-]{1,128}")


class Decode(Protocol):
    """Turns a body into the bytes of an export request; raises DecodeError."""

    def __call__(self, body: bytes, signal: Signal) -> bytes: ...


class Intake:
    """The one way from a transport into the pipelines.

    A request that carries an id which is under way already (its client hung up and sent it again) joins the one that runs, and shares its
    outcome. Equal bytes alone are no sign of that: two programs may well say the same, and neither must be lost.
    """

    def __init__(self, receiver: Receiver[Any], count_refused: Callable[[Batch, str], None], ack_timeout: float) -> None:
        self._receiver, self._count_refused, self._ack_timeout = receiver, count_refused, ack_timeout
        self._running: dict[tuple[Signal, str, str], asyncio.Future[None]] = {}

    def serves(self, signal: Signal) -> bool:
        """Whether a pipeline takes this signal from here."""
        return signal in self._receiver.outputs

    async def take(
        self, signal: Signal, body: bytes, *, peer: str, transport: str, batch_id: str = "", decode: Decode | None = None
    ) -> None:
        """`read` and `hand_on`."""
        await self.hand_on(await self.read(signal, body, peer=peer, batch_id=batch_id, decode=decode), transport)

    async def read(self, signal: Signal, body: bytes, *, peer: str, batch_id: str = "", decode: Decode | None = None) -> Batch:
        """`read_request`, in a thread where the body is not small."""
        if len(body) > OFFLOAD_BYTES:
            return await self._receiver.in_thread(read_request, signal, peer, batch_id, decode, body)
        return read_request(signal, peer, batch_id, decode, body)

    async def hand_on(self, batch: Batch, transport: str) -> None:
        """Returns when the batch is acknowledged. Raises Permanent where it is never to be sent again, Retryable where it is."""
        if not batch.count:
            return
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


def read_request(signal: Signal, peer: str, batch_id: str, decode: Decode | None, body: bytes) -> Batch:
    """The batch that a request brings. `body` is inflated, and an encoded export request unless `decode` makes it one.

    Raises DecodeError.
    """
    payload = decode(body, signal) if decode is not None else body
    count = count_records(signal, payload)
    # Only what our own exporter would send is taken for an id: it goes into logs and queues.
    return Batch(signal, payload, count, batch_id if _ID.fullmatch(batch_id) else uuid.uuid4().hex, peer)
