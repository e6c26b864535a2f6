"""Spark jobs over the same topics that the agents use."""
