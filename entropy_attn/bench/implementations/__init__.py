"""The competing implementations: this package, torch's attention, other packages, and the materialized softmax."""
