"""Following files: identity, rotation, reading in rounds. Knows no component and no destination."""
