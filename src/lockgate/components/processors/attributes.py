"""Add, change or delete attributes of log records, spans and data points, of all or of those that include and exclude select."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from lockgate.attributes.actions import Action, compile_actions
from lockgate.attributes.matching import MatchProperties, conflicts, selection
from lockgate.attributes.records import data_points, groups
from lockgate.kit.document import Path
from lockgate.pipeline.contract import Batch, ComponentSettings, Context, Processor, Signal, component


class AttributesSettings(ComponentSettings):
    """What to do to the attributes of which records, in order."""

    actions: list[Action] = Field(min_length=1)
    """Actions applied one after the other; later ones see what earlier ones did."""
    include: MatchProperties | None = None
    """Only records that match are changed; all, if it is left out."""
    exclude: MatchProperties | None = None
    """Of these, records that match are left alone."""

    def conflicts(self, signal: Signal) -> Iterator[tuple[Path, str]]:
        yield from conflicts(self.include, self.exclude, signal)


@component("attributes", AttributesSettings)
class AttributesProcessor(Processor[AttributesSettings]):
    """Keeps order and counts. Works on the parsed request, which the record processors after it share."""

    def __init__(self, settings: AttributesSettings, context: Context) -> None:
        super().__init__(settings, context)
        self._apply = compile_actions(settings.actions)
        self._selects = selection(settings.include, settings.exclude, context.signal or Signal.LOGS)

    def process(self, batch: Batch) -> Batch:
        request = batch.copy_message()
        apply, selects, peer = self._apply, self._selects, batch.peer
        for entry, scope, records in groups(batch.signal, request):
            for record in records:
                if selects is not None and not selects(entry, scope, record):
                    continue
                if batch.signal is Signal.METRICS:
                    for point in data_points(record):
                        apply(point.attributes, peer)
                else:
                    apply(record.attributes, peer)
        return batch.with_message(request, batch.count)
