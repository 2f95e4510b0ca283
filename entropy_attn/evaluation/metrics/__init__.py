"""Metrics of images by networks: similarities of CLIP, and answers to questions."""
