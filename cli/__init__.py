"""The `llmagentos` command."""
