"""The nodes: what they declare, and a graph of them run by hand, with stand-ins for ComfyUI's interface."""

from __future__ import annotations

import ast
import asyncio
import inspect
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from tests.integrations.comfyui import stub
from tests.integrations.comfyui.loading import FOLDER, NAME, pack
from tests.integrations.comfyui.test_words import PROMPT, Clip


class Port:
    """An input or output as it was declared."""

    def __init__(self, id=None, **settings):
        self.id, self.settings = id, settings


class Schema:
    def __init__(self, **settings):
        self.__dict__.update(settings)


class NodeOutput:
    def __init__(self, *args):
        self.args = args


def kind():
    return SimpleNamespace(Input=type("Input", (Port,), {}), Output=type("Output", (Port,), {}))


def interface() -> ModuleType:
    """comfy_api.latest, as far as the nodes use it."""
    module = ModuleType("comfy_api.latest")
    names = ("Model", "Combo", "Int", "Float", "Boolean", "String", "Clip", "Conditioning", "Latent", "Image")
    module.io = SimpleNamespace(
        **{name: kind() for name in names},
        ComfyNode=type("ComfyNode", (), {}),
        Custom=lambda name: kind(),
        NodeOutput=NodeOutput,
        Schema=Schema,
    )
    module.ComfyExtension = type("ComfyExtension", (), {})
    return module


@pytest.fixture
def nodes(monkeypatch):
    """The classes of the nodes by their id."""
    monkeypatch.setitem(sys.modules, "comfy_api", ModuleType("comfy_api"))
    monkeypatch.setitem(sys.modules, "comfy_api.latest", interface())
    extension = asyncio.run(pack().comfy_entrypoint())
    found = {node.define_schema().node_id: node for node in asyncio.run(extension.get_node_list())}
    yield found
    sys.modules.pop(f"{NAME}.nodes")


def test_every_port_is_named_and_explained(nodes):
    assert len(nodes) == 5 and all(name.startswith("EntropyAttn") for name in nodes)
    for node in nodes.values():
        schema = node.define_schema()
        ids = [port.id for port in (*schema.inputs, *schema.outputs)]
        assert len(set(ids)) == len(ids), "ComfyUI wants ids that differ between inputs and outputs, too"
        assert schema.display_name and schema.description and schema.category == "entropy_attn"
        for port in schema.inputs:
            assert len(port.settings["tooltip"]) > 10
        arguments = set(inspect.signature(node.execute).parameters)
        if "settings" not in arguments:
            assert arguments == {port.id for port in schema.inputs}


def test_the_settings_of_the_scale_are_those_of_its_function(nodes):
    from tests.integrations.comfyui.test_scale import scale

    schema = nodes["EntropyAttnLogNScale"].define_schema()
    parameters = inspect.signature(scale.scale_of).parameters
    assert [port.id for port in schema.inputs] == list(parameters)
    for port in schema.inputs[1:]:
        assert port.settings["default"] == parameters[port.id].default


def test_a_graph_with_every_node(nodes):
    pytest.importorskip("matplotlib")
    pytest.importorskip("pandas")
    settings = {"policy": "logn", "layers": "self", "train_size": 64, "train_tokens": 0, "strength": 1.0}
    settings |= {"direction": "both", "count_text_tokens": False}
    (model,) = nodes["EntropyAttnLogNScale"].execute(stub.model(), **settings).args
    model, probe = nodes["EntropyAttnProbe"].execute(model).args
    model, positive, maps = nodes["EntropyAttnWordMaps"].execute(model, Clip(), PROMPT, "circle, square").args
    latent = stub.run(model, (12, 16), cond=positive[0][0])
    image, table = nodes["EntropyAttnProbeRead"].execute(probe, {"samples": latent}, "self").args
    assert image.shape[0] == 1 and image.shape[3] == 3 and image.dtype == torch.float32
    assert 0 <= image.min() < image.max() <= 1
    assert len(table.splitlines()) == 1 + 2 * 2 * 6  # steps, branches, calls
    overlays, text = nodes["EntropyAttnWordMapsOverlay"].execute(maps, torch.rand(1, 96, 128, 3), 0.65).args
    assert overlays.shape == (2, 96, 128, 3) and len(text.splitlines()) == 3


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_only_the_nodes_need_comfyui(path):
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in (
            [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", "") or ""]
        )
        if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and node.level == 0)
    }
    comfy = {name for name in imported if name.startswith("comfy")}
    assert comfy == ({"comfy_api"} if path.name == "nodes.py" else set())
    assert not imported & {"diffusers", "transformers"}
