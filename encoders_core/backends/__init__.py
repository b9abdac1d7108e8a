"""Forward passes that need no torch: the same weights, the same features, on numpy or on jax.numpy."""
