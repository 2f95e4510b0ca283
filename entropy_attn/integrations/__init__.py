"""Routing the attention of diffusers and transformers through this package, and guidance of diffusers pipelines."""
