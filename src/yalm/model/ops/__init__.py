"""Fused operations of the network, each beside the plain formula it is tested against."""
