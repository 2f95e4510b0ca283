"""One routed attention call: the scale policy, the attention itself, the recorders."""
