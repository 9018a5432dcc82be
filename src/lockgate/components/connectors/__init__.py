"""Built-in connectors, one file or folder each; none imports another component."""
