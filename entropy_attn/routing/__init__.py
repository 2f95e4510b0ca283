"""What happens to a routed attention call: the scale policy, the attention itself, the recorders."""
