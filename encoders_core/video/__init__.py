"""Clips: read, sampled, their motion measured."""
