"""The denoisers whose attention is routed, and what routing has to know of each."""
