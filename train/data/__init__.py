"""From places in the order to micro-batches: reading shards, decoding samples, one process for each worker."""
