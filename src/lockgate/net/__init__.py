"""HTTP and gRPC servers and clients: TLS, trust, proxies, compression, limits. Knows no telemetry beyond what OTLP asks of a transport."""
