"""UpdateScope: how far reading moves the weights, and Δθ itself."""
