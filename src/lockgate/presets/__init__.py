"""The roles, as configurations: `lockgate run --config NAME`."""
