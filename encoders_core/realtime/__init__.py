"""Streams to vectors under a latency budget: gate, scheduler, temporal head, RealtimeVideoEncoder."""
