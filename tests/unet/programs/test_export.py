"""Networks of other libraries' kinds: exported, read as data, and equal to the network itself."""

import io
import json
import os
import pickle
import random
import zipfile

import pytest
import torch
from conftest import seeded
from torch import nn
from torch.nn import functional as F

from maskfleet.unet import weights
from maskfleet.unet.network import WeightsError
from maskfleet.unet.programs.conversion import convert
from maskfleet.unet.programs.export import export_network
from maskfleet.unet.programs.pt2 import read_pt2


class Segmentation(nn.Module):
    """A small encoder and decoder, as other libraries build them: its up-sampling asks for sizes."""

    def __init__(self, *, classes=2, head=None):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.second = nn.Sequential(
            nn.Conv2d(4, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.SiLU(inplace=True), nn.Dropout2d(0.5)
        )
        self.last = nn.Conv2d(12, classes, 1)
        self.head = head

    def forward(self, x):
        fine = self.first(x)
        coarse = F.interpolate(self.second(fine), size=fine.shape[2:], mode="bilinear", align_corners=False)
        logits = self.last(torch.cat([fine, coarse], 1))
        return logits if self.head is None else self.head(logits)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = Segmentation()
    with torch.no_grad():
        for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.running_mean.normal_(std=0.1)
            norm.running_var.uniform_(0.5, 1.5)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def pt2(model):
    rows, columns, images = (torch.export.Dim(name, min=1, max=4096) for name in ("rows", "columns", "images"))
    sizes = ({0: images, 2: 2 * rows, 3: 2 * columns},)
    sink = io.BytesIO()
    torch.export.save(torch.export.export(model, (torch.rand(2, 3, 8, 12),), dynamic_shapes=sizes), sink)
    return sink.getvalue()


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "network.safetensors"
    identity = export_network(model, path, channels=3, multiple=2, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))
    return path, identity


def test_the_network_of_the_file_is_the_model(model, exported):
    path, identity = exported
    found = weights.load_local(path)
    assert (found.id, found.normalize) == (identity, ((0.5, 0.4, 0.3), (0.2, 0.2, 0.2)))
    assert (found.model.n_channels, found.model.n_classes, found.model.untileable) == (3, 2, None)
    for shape in ((1, 3, 32, 48), (3, 3, 10, 6)):
        x = torch.rand(shape)
        assert torch.equal(found.model(x), model(x))


def test_other_sides_are_extended_and_cut_back(model, exported):
    found = weights.load_local(exported[0]).model
    x = torch.rand(1, 3, 31, 45)
    expected = model(F.pad(x, (0, 1, 0, 1), "reflect"))[:, :, :31, :45]
    assert torch.equal(found(x), expected)
    with pytest.raises(ValueError, match="sides of at least 2 px, got 9×1; enlarge the image"):
        found(torch.rand(1, 3, 1, 9))


def test_a_program_is_converted_to_the_same_network(model, pt2, exported):
    found = weights.load(convert(pt2))
    x = torch.rand(2, 3, 16, 24)
    assert torch.equal(found.model(x), model(x))
    assert found.model.program == weights.load_local(exported[0]).model.program


def test_saved_again_it_is_the_same_file(pt2):
    data = convert(pt2)
    loaded = weights.load(data)
    assert weights.save(loaded.model, metadata=loaded.metadata) == data


@pytest.mark.parametrize(("classes", "head"), [(2, nn.Softmax(dim=1)), (1, nn.Sigmoid())])
def test_probabilities_become_logits_of_the_same_classes(tmp_path, classes, head):
    model = Segmentation(classes=classes, head=head).eval().requires_grad_(False)
    export_network(model, tmp_path / "w.safetensors", channels=3, multiple=2, output="probabilities")
    found = weights.load_local(tmp_path / "w.safetensors").model
    x = torch.rand(1, 3, 16, 24)
    again = found(x).sigmoid() if classes == 1 else found(x).softmax(1)
    assert torch.allclose(again, model(x), atol=1e-6)


def test_the_models_mode_is_kept(model, tmp_path):
    training = Segmentation().train()
    export_network(training, tmp_path / "w.safetensors", channels=3, multiple=2)
    assert training.training


class Fixed(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.convolution = nn.Conv2d(3, 2, 1)
        self._forward = forward

    def forward(self, x):
        return self._forward(self.convolution(x))


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda y: y.cumsum(2), "uses the operator cumsum.default"),
        (lambda y: F.avg_pool2d(y, 2), r"makes \(2, 2, .*\) of images .*; resize its logits to the image"),
        (lambda y: (y, y), "takes or returns more than one tensor"),
        (
            lambda y: y if y.shape[2] > 70 else y + 1,
            "other values than Fixed for images of 48×64 px|other values than Fixed for images of 64×80 px",
        ),
    ],
)
def test_a_network_that_cannot_be_run_says_why(tmp_path, forward, message):
    with pytest.raises(WeightsError, match=message):
        export_network(Fixed(forward), tmp_path / "w.safetensors", channels=3, multiple=16)
    assert not list(tmp_path.iterdir())


def changed(pt2, change):
    """Return a .pt2 with some entries changed."""
    sink = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(pt2)) as source, zipfile.ZipFile(sink, "w") as target:
        for name in source.namelist():
            target.writestr(name, change(name, source.read(name)))
    return sink.getvalue()


def in_json(name, edit):
    """Return a change of one JSON entry."""

    def change(entry, data):
        if not entry.endswith(name):
            return data
        value = json.loads(data)
        edit(value)
        return json.dumps(value).encode()

    return change


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def _pickled_weights(config):
    next(iter(config["config"].values()))["use_pickle"] = True


CODE = "[c for c in ().__class__.__base__.__subclasses__()][0].__init__.__globals__['os'].mkdir('exploded')"
HARMLESS = {
    "sample inputs": lambda name, data: pickle.dumps(Bomb()) if name.endswith("sample_inputs/model.pt") else data,
    "guards": in_json("models/model.json", lambda m: m.update(guards_code=["__import__('os').mkdir('exploded')"])),
    "range constraints": in_json("models/model.json", lambda m: m["range_constraints"].update({CODE: {}})),
    "strides": lambda name, data: (
        data.replace(b"Mul(Integer(192)", b"Mul(" + CODE.encode() + b", Integer(192)")
        if name.endswith("model.json")
        else data
    ),
}


@pytest.mark.parametrize("way", HARMLESS)
def test_code_in_a_program_is_not_looked_at(way, pt2, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = weights.load(convert(changed(pt2, HARMLESS[way]))).model
    x = torch.rand(1, 3, 16, 24)
    assert torch.equal(found(x), model(x))
    assert not list(tmp_path.iterdir())


def _nodes(edit):
    return in_json("models/model.json", lambda m: edit(m["graph_module"]["graph"]["nodes"]))


def _input_size(axis, text):
    def edit(m):
        size = m["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][axis]
        size["as_expr"]["expr_str"] = text

    return in_json("models/model.json", edit)


REFUSED = {
    "stored as a pickle": in_json("model_weights_config.json", _pickled_weights),
    "uses the operator os.system": _nodes(lambda nodes: nodes[0].update(target="os.system")),
    "uses the operator __class__.default": _nodes(
        lambda nodes: nodes[0].update(target="torch.ops.aten.__class__.default")
    ),
    "uses the operator from_file.default": _nodes(
        lambda nodes: nodes[0].update(target="torch.ops.aten.from_file.default")
    ),
    "uses the operator operator.attrgetter": _nodes(lambda nodes: nodes[0].update(target="_operator.attrgetter")),
    "version 7 of its format": in_json("models/model.json", lambda m: m["schema_version"].update(major=7)),
    "for one size": _input_size(2, CODE),
    "damaged or cut off": _nodes(lambda nodes: nodes[0].pop("inputs")),
    "an argument of the kind as_custom_obj": _nodes(
        lambda nodes: nodes[0]["inputs"][0].update(arg={"as_custom_obj": {"name": "x"}})
    ),
    "has the number 99999": _nodes(lambda nodes: nodes[0]["inputs"][3].update(arg={"as_ints": [99999, 1]})),
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_crafted_program_is_refused(message, pt2, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=message):
        convert(changed(pt2, REFUSED[message]))
    assert not list(tmp_path.iterdir())


def test_training_mode_is_refused():
    sink = io.BytesIO()
    torch.export.save(torch.export.export(Segmentation().train(), (torch.rand(2, 3, 8, 12),), strict=False), sink)
    with pytest.raises(WeightsError, match=r"one size|training mode|more than one tensor|operator"):
        convert(sink.getvalue())


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.full) for seed in range(1, 16))])
def test_damaged_programs_are_read_or_refused(pt2, seed):
    draw = random.Random(seed)
    with zipfile.ZipFile(io.BytesIO(pt2)) as file:
        text = file.read(next(name for name in file.namelist() if name.endswith("models/model.json"))).decode()
    model = json.loads(text)
    for node in model["graph_module"]["graph"]["nodes"]:
        node["metadata"] = {}
    for _ in range(60):
        value = json.loads(json.dumps(model))
        _spoil(value["graph_module"], draw)
        data = changed(pt2, lambda name, old, v=value: json.dumps(v).encode() if name.endswith("model.json") else old)
        try:
            weights.load(convert(data))
        except WeightsError as error:
            assert "\n" not in str(error)


def _spoil(value, draw):
    """Change something at a random place in JSON."""
    while isinstance(value, dict | list) and value:
        key = draw.choice(list(value)) if isinstance(value, dict) else draw.randrange(len(value))
        if not isinstance(value[key], dict | list) or not value[key] or draw.random() < 0.1:
            value[key] = draw.choice([None, True, -1, 0, 3, 4096, 2**63 - 1, 1.5, "x", [], {}, [1, 2], {"as_int": 2}])
            return
        value = value[key]


def test_a_pytorch_unet_is_tiled_as_its_own_class_is(tmp_path):
    model = seeded(2)
    export_network(model, tmp_path / "w.safetensors", channels=3, multiple=16)
    found = weights.load_local(tmp_path / "w.safetensors").model
    assert (found.grid, found.halo, found.min_side) == (model.grid, model.halo, model.min_side)
    x = torch.rand(1, 3, 48, 64)
    assert torch.equal(found(x), model(x))


def test_shared_tensors_are_stored_once(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other, self.last = (
                nn.Conv2d(3, 3, 3, padding=1),
                nn.Conv2d(3, 3, 3, padding=1),
                nn.Conv2d(3, 2, 1),
            )
            self.other.weight = self.one.weight

        def forward(self, x):
            return self.last(self.other(self.one(x)))

    export_network(Tied(), tmp_path / "w.safetensors", channels=3, multiple=2)
    shapes = [tuple(tensor.shape) for tensor in weights.load_local(tmp_path / "w.safetensors").model.buffers()]
    assert shapes.count((3, 3, 3, 3)) == 1


def test_a_network_of_several_inputs_is_refused(pt2):
    edit = in_json(
        "models/model.json",
        lambda m: m["graph_module"]["signature"]["input_specs"].append(
            {"user_input": {"arg": {"as_tensor": {"name": "y"}}}}
        ),
    )
    with pytest.raises(WeightsError, match="more than one tensor"):
        read_pt2(changed(pt2, edit))
