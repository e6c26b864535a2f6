"""The agent API, workers and deployments."""
