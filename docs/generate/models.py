"""Write docs/models.md from the table of denoisers, entropy_attn/integrations/diffusers/models/table.py.

    python -m docs.generate.models

tests/docs/test_models_page.py compares both.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.common import new_parser
from entropy_attn.integrations.diffusers.models import MODELS, LayerRule, Model

PAGE = Path(__file__).parents[1] / "models.md"
TEXT = """# Will it work with my pipeline?

<!-- written by docs/generate/models.py from entropy_attn/integrations/diffusers/models/table.py -->

`ea.apply(pipe)` serves every diffusers pipeline around one of these denoisers. `entropy-attn info --model PATH` answers
for one pipeline: each attention layer with its route, its tokens at a size, its scale, and what is refused and why.
[The tests of diffusers](diffusers-suite.md) for these models pass when they are routed. See also
[how calls are routed](routing.md).

{table}

**Layers.** *self*: the image attends to itself. *cross*: the image attends to the text. *joint*: both attend to both;
the text comes first or last in the sequence. *text*: the text attends to itself; `layers="self"` excludes that. A
pattern is a regular expression for the layer's name. In joint attention `LogN` counts the tokens of the image, or with
`count_text_tokens=True` those of the text too, at both sizes. `rows="image"` gives the scale to the queries of the
image only. Recorders see the queries of the image; `LayerMapRecorder` can see those of the text.

**Route.** *torch*: the attention processor calls torch's `scaled_dot_product_attention`. *dispatch*: it goes through
diffusers' dispatcher, whose backend must be one of torch's (`native` is the default).

**T** is the number of image tokens at the training size; `ea.apply(train_size=...)` overrides the source of that size.
Where the pipeline is the source, a denoiser without its pipeline needs `train_size`.

**Guidance** is how the pipeline usually runs its two branches: as parts of one batch, or as calls one after the other,
which count as one step. Recorders do not rely on it: they compare the texts of each call with those that the pipeline
encoded. They refuse a first call whose parts they cannot tell; `EntropyRecorder(branches=...)` states them then.

## Notes

{notes}

## What is refused, by name

- Any other denoiser, and a pipeline with two of them (`transformer_2`): apply to each.
- Attention without torch's `scaled_dot_product_attention`: `AttnProcessor`, sliced and xformers attention, and the
  dispatcher's backends that are not torch's (flash, sage, flex, xformers, …). The message says how to set one that is
  served.
- With a sequence spread over devices (context parallelism): what [many-gpus.md](many-gpus.md#what-is-refused) lists.
- A model that `torch.compile` has wrapped already: apply to the model itself, then compile it.
{refused}
"""


def page() -> str:
    rows = ["| for | denoiser | layers | route | T from | guidance |", "|---|---|---|---|---|---|"]
    rows += [_row(model) for model in MODELS]
    notes = "\n".join(f"- **{model.served}**: {model.note}" for model in MODELS if model.note)
    refused = "\n".join(
        f"- {model.denoiser} called with `{name}`: {reason}."
        for model in MODELS
        for name, reason in model.refused.items()
    )
    return TEXT.format(table="\n".join(rows), notes=notes, refused=refused)


def _row(model: Model) -> str:
    layers = "; ".join(_layers(rule, alone=len(model.layers) == 1) for rule in model.layers)
    route = "torch" if model.route == "sdpa" else "dispatch"
    cells = (model.served, f"`{model.denoiser}`", layers, route, model.train_size_from, str(model.guidance))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _layers(rule: LayerRule, alone: bool) -> str:
    what = {"call": "self and cross", None: "not routed"}.get(rule.kind, rule.kind)
    if rule.kind == "joint":
        what += f", text {rule.text}"
    if rule.note:
        what += f" ({rule.note})"
    return what if alone or not rule.pattern else f"`{rule.pattern}` {what}"


def main() -> None:
    new_parser(__doc__).parse_args()
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
