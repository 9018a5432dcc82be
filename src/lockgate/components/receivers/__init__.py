"""Built-in receivers, one file or folder each; none imports another component."""
