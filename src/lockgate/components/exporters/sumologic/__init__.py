"""Deliver to Sumo Logic's HTTP and OTLP sources.

`formats` makes requests of a batch; `exporter` posts them and reads the answers.
"""

from lockgate.components.exporters.sumologic.exporter import SumologicExporter

__all__ = ["SumologicExporter"]
