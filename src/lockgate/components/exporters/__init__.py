"""Built-in exporters, one file or folder each; none imports another component."""
