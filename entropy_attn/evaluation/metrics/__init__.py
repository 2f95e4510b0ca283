"""Metrics of images that need networks. The networks are folders on this machine; nothing is downloaded."""
