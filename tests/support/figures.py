"""The names of the figures of a profile."""

FIGURES = {
    "layer_regimes",
    "entropy_vs_tokens",
    "entropy_vs_training",
    "entropy_per_layer",
    "entropy_heads",
    "entropy_vs_step",
    "entropy_map",
    "pictures",
}
