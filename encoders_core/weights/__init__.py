"""Weights on disk: where they lie, whether they are what they should be, what their names become."""
