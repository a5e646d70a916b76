"""The network, once: its definition, presets, costs, fused operations and checkpoint formats."""
