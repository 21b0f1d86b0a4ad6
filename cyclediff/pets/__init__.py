"""Pets, the synthetic benchmark: renderer, captions, edits, networks and their weights."""
