"""Writes values.schema.json, which Helm reads, from files/schema.yaml, which people and the templates read."""

import json
from pathlib import Path

import yaml

CHART = Path(__file__).parent / "lockgate"

schema = yaml.safe_load((CHART / "files/schema.yaml").read_text())
del schema["x-types"]
(CHART / "values.schema.json").write_text(json.dumps(schema, indent=1) + "\n")
