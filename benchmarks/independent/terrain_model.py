"""Does the converted terrain model compute what the published file computes? Compared with onnxruntime.

    python -m benchmarks.independent.terrain_model
    python -m benchmarks.independent.terrain_model --folder /data/independent --csv check.csv

The published file is an ONNX graph of one image size, 128. Here its tensors are loaded into diffusers' UNet2DModel, all
of them and strictly, which takes any size that is a multiple of 16 and whose attention can be routed.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from benchmarks.common import add_commit, add_csv, new_parser, write_rows
from benchmarks.independent.download import TERRAIN, add_folder, files_of
from entropy_attn.bench.machine import machine, version

FILE = "terrain_consistency_unet_difficulty100.onnx"
TRAIN_SIZE = 128
SIGMA_MIN, SIGMA_MAX, SIGMA_DATA = 0.002, 80.0, 0.5  # the consistency model's; one step starts from SIGMA_MAX
DIFFICULTIES = 100
CONFIG = {
    "sample_size": TRAIN_SIZE,
    "in_channels": 1,
    "out_channels": 1,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ("ResnetDownsampleBlock2D",) * 2 + ("AttnDownBlock2D",) * 3,
    "up_block_types": ("AttnUpBlock2D",) * 3 + ("ResnetUpsampleBlock2D",) * 2,
    "block_out_channels": (32, 32, 64, 96, 128),
    "layers_per_block": 4,
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "attention_head_dim": 32,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "scale_shift",
    "attn_norm_num_groups": 32,
    "class_embed_type": "identity",  # the label's network is `Terrain.label`
}
LEVELS = len(CONFIG["block_out_channels"])
LAYERS = CONFIG["layers_per_block"]
# Names in UNet2DModel of the modules of OpenAI's UNet.
FIXED = {
    "input_blocks.0.0": "conv_in",
    "out.2": "conv_out",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
}
IN_BLOCK = {
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
    "proj_out": "to_out.0",
    "qkv": "qkv",
}


class Terrain(nn.Module):
    """Height fields from noise and a difficulty, in one step.

    Args:
        unet: the network.
        label: from the difficulty, 0 to 1, to the class embedding.
    """

    def __init__(self, unet: UNet2DModel, label: nn.Module):
        super().__init__()
        self.unet, self.label = unet, label

    @torch.no_grad()
    def forward(self, noisy: Tensor, sigma: float, difficulty: int) -> Tensor:
        """The denoised image.

        Args:
            noisy: (B, 1, rows, columns), an image plus noise of standard deviation `sigma`.
            sigma: from SIGMA_MIN to SIGMA_MAX.
            difficulty: 1 to 100.

        Returns:
            A tensor of the shape of `noisy`, from -1 to 1.
        """
        above = sigma - SIGMA_MIN
        spread = math.hypot(sigma, SIGMA_DATA)
        label = self.label(label_input(difficulty)[:, None].expand(len(noisy), 1))
        time = torch.tensor(250 * math.log(sigma))  # the UNet would round a float to an integer
        out = self.unet(noisy / spread, time, class_labels=label).sample
        mixed = SIGMA_DATA**2 / (above**2 + SIGMA_DATA**2) * noisy + above * SIGMA_DATA / spread * out
        return mixed.clamp(-1, 1)


def label_input(difficulty: int) -> Tensor:
    """What the label's network takes for a difficulty: (1,), 0 to 1."""
    return torch.tensor([(difficulty - 1) / (DIFFICULTIES - 1)])


def load(folder: Path) -> Terrain:
    """The model from the published file.

    Raises:
        MissingWeights: the file is not in `folder`.
        ImportError: onnx is not installed.
    """
    path = files_of(TERRAIN, folder)[FILE]
    named, norms = read(path)
    label = nn.Sequential(nn.Linear(1, 128), nn.SiLU(), nn.Linear(128, 128))
    label.load_state_dict({name.removeprefix("label_emb."): named.pop(name) for name in list(named)
                           if name.startswith("label_emb.")})  # fmt: skip
    unet = UNet2DModel(**CONFIG)
    unet.load_state_dict(state_of(unet, named, norms))  # strict: every tensor of both, in its shape
    return Terrain(unet, label).eval()


def read(path: Path) -> tuple[dict[str, Tensor], list[tuple[Tensor, Tensor]]]:
    """The tensors of the file: those with a name, and scale and shift of each group norm in the order of the graph.

    The export has split each group norm into InstanceNormalization, Mul and Add, whose operands have lost their names.
    """
    try:
        import onnx
    except ImportError as error:
        raise ImportError("the terrain model needs onnx to be read: pip install '.[independent]'") from error
    graph = onnx.load(str(path)).graph
    tensors = {each.name: torch.from_numpy(onnx.numpy_helper.to_array(each).copy()) for each in graph.initializer}
    named = {name.removeprefix("network."): t for name, t in tensors.items() if name.startswith("network.")}
    users: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)

    def operand(node: Any, kind: str) -> tuple[Any, Tensor]:
        """The next node of this kind after `node`, past reshapes, and its constant operand."""
        following = users.get(node.output[0], [])
        while len(following) == 1 and following[0].op_type == "Reshape":
            following = users.get(following[0].output[0], [])
        constants = [tensors[name].flatten() for each in following for name in each.input if name in tensors]
        if [each.op_type for each in following] != [kind] or len(constants) != 1:
            got = ", ".join(each.op_type for each in following) or "nothing"
            raise ValueError(f"{path.name}: expected {kind} with one constant after a norm, got {got}")
        return following[0], constants[0]

    norms = []
    for node in graph.node:
        if node.op_type == "InstanceNormalization":
            product, weight = operand(node, "Mul")
            _, bias = operand(product, "Add")
            norms.append((weight, bias))
    return named, norms


def state_of(unet: UNet2DModel, named: dict[str, Tensor], norms: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """The state of `unet` from the tensors of the file."""
    state: dict[str, Tensor] = {}
    for name, tensor in named.items():
        module, _, kind = name.rpartition(".")
        module = diffusers_name(module)
        if module.endswith((".qkv", ".to_out.0")):  # 1x1 convolutions there, linear layers here
            tensor = tensor.reshape(tensor.shape[: 2 if kind == "weight" else 1])
        if module.endswith(".qkv"):
            for part, chunk in zip("qkv", tensor.chunk(3), strict=True):
                state[f"{module.removesuffix('qkv')}to_{part}.{kind}"] = chunk
        else:
            state[f"{module}.{kind}"] = tensor
    for module, (weight, bias) in zip(norm_order(unet), norms, strict=True):
        state |= {f"{module}.weight": weight, f"{module}.bias": bias}
    return state


def diffusers_name(module: str) -> str:
    """The name in UNet2DModel of a module of the file.

    Raises:
        KeyError: it is no module of this architecture.
    """
    if module in FIXED:
        return FIXED[module]
    parts = module.split(".")
    split = 2 if parts[0] == "middle_block" else 3
    return f"{_blocks()[tuple(parts[:split])]}.{IN_BLOCK['.'.join(parts[split:])]}"


@cache
def _blocks() -> dict[tuple[str, ...], str]:
    """{path of a block in the file: its name in UNet2DModel}."""
    found = {("middle_block", "0"): "mid_block.resnets.0", ("middle_block", "1"): "mid_block.attentions.0",
             ("middle_block", "2"): "mid_block.resnets.1"}  # fmt: skip
    for level in range(LEVELS):
        first, has_attention = (LAYERS + 1) * level, "Attn" in CONFIG["up_block_types"][level]
        for layer in range(LAYERS):
            found["input_blocks", str(first + 1 + layer), "0"] = f"down_blocks.{level}.resnets.{layer}"
            found["input_blocks", str(first + 1 + layer), "1"] = f"down_blocks.{level}.attentions.{layer}"
        found["input_blocks", str(first + 1 + LAYERS), "0"] = f"down_blocks.{level}.downsamplers.0"
        for layer in range(LAYERS + 1):
            found["output_blocks", str(first + layer), "0"] = f"up_blocks.{level}.resnets.{layer}"
            found["output_blocks", str(first + layer), "1"] = f"up_blocks.{level}.attentions.{layer}"
        # The block that doubles the size is the last one of its level.
        last = "2" if has_attention else "1"
        found["output_blocks", str(first + LAYERS), last] = f"up_blocks.{level}.upsamplers.0"
    return found


def norm_order(unet: UNet2DModel) -> list[str]:
    """The names of the group norms, in the order in which they are called."""
    called: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: called.append(name))
        for name, module in unet.named_modules()
        if isinstance(module, nn.GroupNorm)
    ]
    side = 2 ** (LEVELS - 1)
    with torch.no_grad():
        unet(torch.zeros(1, 1, side, side), 0, class_labels=torch.zeros(1, 128))
    for hook in hooks:
        hook.remove()
    return called


def difference(terrain: Terrain, path: Path, seed: int, difficulty: int) -> float:
    """Largest absolute difference to the published file in onnxruntime, for one image.

    Raises:
        ImportError: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("the comparison needs onnxruntime: pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    g = torch.Generator().manual_seed(seed)
    noisy = SIGMA_MAX * torch.randn(1, 1, TRAIN_SIZE, TRAIN_SIZE, generator=g)
    values = {"noisy": noisy, "sigma": torch.tensor([SIGMA_MAX]), "difficulty": label_input(difficulty)}
    feed = {each.name: values[each.name].numpy() for each in session.get_inputs()}
    theirs = torch.from_numpy(session.run(None, feed)[0])
    return (terrain(noisy, SIGMA_MAX, difficulty) - theirs).abs().max().item()


def main() -> None:
    parser = new_parser(__doc__)
    add_folder(parser)
    add_csv(parser)
    add_commit(parser)
    args = parser.parse_args()

    terrain, path = load(args.folder), files_of(TERRAIN, args.folder)[FILE]
    about = machine(torch.device("cpu"), args.commit)
    about = {name: version(name) for name in ("onnxruntime", "diffusers")} | {
        name: about[name] for name in ("torch", "commit", "date")
    }
    rows = []
    for seed, difficulty in ((0, 1), (1, 50), (2, 100)):
        largest = difference(terrain, path, seed, difficulty)
        rows.append({"seed": seed, "difficulty": difficulty, "max_difference": f"{largest:.2e}"} | about)
        print(f"seed {seed}, difficulty {difficulty}: largest difference {largest:.2e}")
    if args.csv:
        write_rows(args.csv, rows)


if __name__ == "__main__":
    main()
