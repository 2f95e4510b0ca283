"""One attention call: argument checks, the choice of an implementation, the operator, and the implementations."""
