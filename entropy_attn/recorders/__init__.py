"""What is recorded of attention calls: the entropy of their rows, and maps of where images attend to words."""
