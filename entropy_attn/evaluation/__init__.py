"""Evaluations of images: sizes x scale policies, guidance, cost; resumable, with paired noise and intervals."""
