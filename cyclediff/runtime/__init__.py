"""How a run is computed: batches, devices, processes, and the record on disk."""
