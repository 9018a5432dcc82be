"""HTTP and gRPC servers and clients: TLS, trust, proxies, compression, credentials, limits. These transports know no telemetry.

On top of them stand OTLP's requests as two receivers take them (`otlp_http`, `intake`) and its names on gRPC (`otlp_grpc`).
"""
