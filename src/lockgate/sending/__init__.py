"""What every exporter needs between `consume` and the wire: queue, retry, ledger."""
