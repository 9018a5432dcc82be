"""Add, change or delete resource attributes. Touches no record: works on the wire, resource by resource."""

from __future__ import annotations

from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from pydantic import Field

from lockgate.attributes.actions import Action, asks_peer, compile_actions
from lockgate.attributes.cache import EditCache
from lockgate.pipeline.contract import Batch, ComponentSettings, Context, Processor, component


class ResourceSettings(ComponentSettings):
    """What to do to each resource's attributes, in order."""

    attributes: list[Action] = Field(min_length=1)
    """Actions applied one after the other; later ones see what earlier ones did."""


@component("resource", ResourceSettings)
class ResourceProcessor(Processor[ResourceSettings]):
    """Keeps order and counts; a batch in, a batch out. Each distinct resource is edited once, however many batches carry it."""

    def __init__(self, settings: ResourceSettings, context: Context) -> None:
        super().__init__(settings, context)
        self._apply = compile_actions(settings.attributes)
        self._asks_peer = asks_peer(settings.attributes)
        self._cache: EditCache[str] = EditCache(self._edit)

    def process(self, batch: Batch) -> Batch:
        return batch.map_resources(self._cache.bound(batch.peer if self._asks_peer else ""))

    def _edit(self, raw: bytes, peer: str) -> bytes:
        resource = Resource.FromString(raw)
        self._apply(resource.attributes, peer)
        return resource.SerializeToString()
