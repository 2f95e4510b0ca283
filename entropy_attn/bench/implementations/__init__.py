"""What competes in the benchmark: this package, torch's attention, other packages, and the softmax matrix."""
