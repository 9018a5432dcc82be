"""The embedded backend's tables and queries. Knows no HTTP."""
