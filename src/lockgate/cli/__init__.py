"""Arguments -> one call below. Nothing else."""
