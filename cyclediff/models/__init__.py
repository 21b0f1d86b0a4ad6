"""Any checkpoint becomes a model here; every tensor of it is used, or it is refused."""
