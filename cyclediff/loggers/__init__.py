"""W&B and TensorBoard: views of what is on disk."""
