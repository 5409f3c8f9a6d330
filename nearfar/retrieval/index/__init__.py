"""The vector index: immutable segments named by one manifest."""
