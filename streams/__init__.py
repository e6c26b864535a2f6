"""The data plane: settings, topology, wire format, registry, producer, tail, node, transport.

Knows nothing of LLMs.
"""
