"""Training SAM2 in float and with fake-quantizers: one loop, procedural batches and SAM2's own losses."""
