"""Built-in extensions, one file or folder each; none imports another component."""
