"""nn.Modules and nothing else: weights and arithmetic, no files, no state of streams."""
