"""Built-in processors, one file or folder each; none imports another component."""
