"""Training of SDXL's base and refiner on the shards that curation wrote."""
