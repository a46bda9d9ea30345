"""`jorge cost`: targets, options, output and errors."""

import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from jorge import cli
from jorge.cost import estimate, suggest
from jorge.cost.targets import TargetError, load_target, token_input

MODULE = """
import torch
from torch import nn

def mlp(width=8, depth=1, name="x"):
    assert name in ("x", "wide"), name
    layers = [nn.Linear(width, width) for _ in range(depth)]
    return nn.Sequential(nn.Flatten(), *layers)

def words():
    return nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 50))

def shapes():
    return {"weight": (6, 4), "bias": (6,)}

def broken():
    raise RuntimeError("two lines\\nof trouble")

def number():
    return 3
"""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "cost_models.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "cost_models", raising=False)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    status = cli.main(["cost", *argv])
    out, err = capsys.readouterr()
    return status, out, err


def test_a_callable_with_arguments_as_a_table(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [
        "cost_models:mlp",
        "--args",
        "width=12",
        "depth=3",
        "name=wide",
        "--input",
        "3,4",
        "--batch",
        "100",
        "--all",
    ]
    status, out, err = run(capsys, *argv, "--budget", "50%", "--interval", "5", "--method", "binomial")
    assert (status, err) == (0, "")
    assert "input 100×3×4" in out
    for text in ("1.weight", "3.bias", "total", "SGD", "AdamW", "Shampoo", "SOAP", "Muon", 'method="binomial"'):
        assert text in out
    assert "interval of 5" in out
    model = nn.Sequential(nn.Flatten(), *[nn.Linear(12, 12) for _ in range(3)])
    sample = torch.zeros(100, 3, 4)
    assert str(suggest(model, 0.5, sample_input=sample, method="binomial")) in " ".join(out.split())


def test_json_says_what_the_library_says(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [
        "cost_models:words",
        "--tokens",
        "5",
        "--batch",
        "4",
        "--grafting",
        "adam",
        "--preconditioner-dtype",
        "bfloat16",
        "--json",
    ]
    status, out, _ = run(
        capsys, *argv, "--block-size", "16", "--balance", "50", "--model-speed", "2", "--budget", "0.5", "--gpu"
    )
    assert status == 0
    data = json.loads(out)
    model = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 50))
    sample = torch.zeros(4, 5, dtype=torch.long)
    scale: dict[str, Any] = {"balance": 50.0, "model_speed": 2.0, "gpu": True}
    options: dict[str, Any] = {"grafting": "adam", "preconditioner_dtype": torch.bfloat16}
    cost = estimate(model, sample_input=sample, block_size=16, **scale, **options)
    advice = suggest(model, 0.5, sample_input=sample, **scale, **options)
    assert {key: value for key, value in data.items() if key != "suggestion"} == json.loads(json.dumps(cost.to_dict()))
    assert data["suggestion"] == json.loads(json.dumps(advice.to_dict()))


def test_checkpoints_are_read_without_their_weights(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 6))
    model[2].weight = model[0].weight
    torch.save(model.state_dict(), models / "plain.pt")
    torch.save({"epoch": 3, "state_dict": model.state_dict()}, models / "nested.pth")
    expected = estimate(model).state_bytes
    for name in ("plain.pt", "nested.pth"):
        status, out, _ = run(capsys, name, "--json")
        assert (status, json.loads(out)["state_bytes"]) == (0, expected)


def safetensors(path: Path, header: object, tail: bytes = b"") -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + tail)
    return path


def test_safetensors_are_read_from_their_header(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "w": {"dtype": "BF16", "shape": [12, 5], "data_offsets": [0, 120]},
        "steps": {"dtype": "I64", "shape": [], "data_offsets": [120, 128]},
    }
    path = safetensors(models / "model.safetensors", header, bytes(128))
    found = load_target(str(path))
    assert {name: (t.shape, t.dtype, t.device.type) for name, t in found.items()} == {
        "w": (torch.Size([12, 5]), torch.bfloat16, "meta")
    }
    status, out, _ = run(capsys, "model.safetensors", "--model-flops", "1e9", "--rows", "0")
    assert status == 0
    assert "… and 1 more" in out
    assert "predicted overhead over AdamW" in out


class Config:
    """What this package uses of a Hugging Face config."""

    def __init__(self, model_type: str, width: int = 4, architectures: list[str] | None = None) -> None:
        self.model_type, self.width, self.architectures = model_type, width, architectures

    def to_dict(self) -> dict[str, Any]:
        return vars(self)


@pytest.fixture
def transformers(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A stand-in for the package, with the names that are used of it."""
    module: Any = types.ModuleType("transformers")
    module.AutoConfig = types.SimpleNamespace(for_model=Config)
    module.AutoModel = types.SimpleNamespace(from_config=lambda config: nn.Linear(config.width, 2))
    module.WithHead = lambda config: nn.Sequential(nn.Linear(config.width, 2), nn.Linear(2, 7))
    module.TinyConfig = lambda width=4: Config("tiny", width)
    monkeypatch.setitem(sys.modules, "transformers", module)
    return module  # type: ignore[no-any-return]


def test_hugging_face_configs(models: Path, transformers: Any) -> None:
    (models / "config.json").write_text(json.dumps({"model_type": "tiny", "width": 9}))
    (models / "head.json").write_text(json.dumps({"model_type": "tiny", "architectures": ["WithHead"]}))
    for target, shape in ((".", (2, 9)), ("config.json", (2, 9)), ("transformers:TinyConfig", (2, 4))):
        model = load_target(target)
        assert (tuple(model.weight.shape), model.weight.device.type) == (shape, "meta")
    assert len(load_target("head.json")) == 2
    assert load_target("transformers:TinyConfig", ["width=6"]).weight.shape == (2, 6)


def test_a_config_that_was_saved_by_a_training_keeps_a_cache_here(models: Path, transformers: Any) -> None:
    """Trainers save `use_cache: false`; models without a cache read values, which meta tensors do not have."""
    seen: list[bool] = []

    def build(config: Any) -> nn.Module:
        seen.append(config.use_cache)
        return nn.Linear(2, 2)

    transformers.AutoConfig.for_model = lambda **data: types.SimpleNamespace(**data)
    transformers.AutoModel.from_config = build
    for name, kept in (("without", False), ("with", True)):
        (models / f"{name}.json").write_text(json.dumps({"model_type": "tiny", "use_cache": kept}))
        load_target(f"{name}.json")
    assert seen == [True, True]


def test_tokens_go_to_encoder_and_decoder() -> None:
    assert token_input(nn.Linear(2, 2), 3, 5).shape == (3, 5)
    both: Any = nn.Linear(2, 2)
    both.config = types.SimpleNamespace(is_encoder_decoder=True)
    assert {name: t.shape for name, t in token_input(both, 3, 5).items()} == {
        "input_ids": (3, 5),
        "decoder_input_ids": (3, 5),
    }


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nowhere"], "is no target"),
        (["missing_package_x:build"], "pip install missing_package_x"),
        (["cost_models:nothing"], "has no nothing"),
        (["cost_models:MODULE.x"], "has no MODULE.x"),
        (["cost_models:__doc__"], "not a callable"),
        (["cost_models:broken"], "RuntimeError: two lines"),
        (["cost_models:number"], "returned a int"),
        (["cost_models:mlp", "--args", "width"], "key=value"),
        (["cost_models:mlp", "--args", "height=3"], "unexpected keyword"),
        (["cost_models:mlp", "--budget", "5%"], "--budget needs"),
        (["cost_models:mlp", "--input", "3"], "--model-flops"),
        (["cost_models:shapes", "--input", "3"], "needs a module"),
        (["gone.pt"], "no such file"),
        (["gone.safetensors"], "no such file"),
        (["text.pt"], "cannot be mapped"),
        (["empty.pth"], "holds no state dict"),
        (["text.safetensors"], "no safetensors file"),
        (["eight.safetensors"], "F8_E4M3"),
        (["list.safetensors"], "no safetensors file"),
        (["list.json"], "no model_type"),
        (["text.json"], "cannot be read as JSON"),
        (["config.json"], "pip install transformers"),
        (["config.json", "--args", "a=3"], "only module:callable takes arguments"),
        (["hollow"], "config.json"),
    ],
)
def test_errors_are_one_line(
    models: Path,
    argv: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    for name in ("text.pt", "text.safetensors", "text.json"):
        (models / name).write_text("no such thing at all")
    torch.save({"epoch": 1}, models / "empty.pth")
    safetensors(models / "eight.safetensors", {"w": {"dtype": "F8_E4M3", "shape": [2, 2], "data_offsets": [0, 4]}})
    safetensors(models / "list.safetensors", [1, 2])
    (models / "list.json").write_text("[1]")
    (models / "config.json").write_text('{"model_type": "tiny"}')
    (models / "hollow").mkdir()
    status, out, err = run(capsys, *argv)
    assert (status, out) == (2, "")
    assert message in err
    assert err.startswith("jorge cost: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "argv",
    [
        ["--budget", "5"],
        ["--budget", "0%"],
        ["--budget", "five"],
        ["--input", "3,x"],
        ["--input", "3", "--tokens", "4"],
        ["--model-flops", "1e9", "--tokens", "4"],
        ["--block-size", "0"],
        ["--interval", "0"],
        ["--balance", "nan"],
        ["--rows", "3", "--all"],
        ["--method", "newton"],
    ],
)
def test_options_that_make_no_sense_are_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["cost", "torch.nn:Identity", *argv])
    assert caught.value.code == 2
    assert argv[0] in capsys.readouterr().err


def test_budgets_parse_as_percentages_and_parts() -> None:
    parse = cli._budget
    assert parse("5%") == parse("0.05") == 0.05
    assert parse("150%") == 1.5


def test_a_target_error_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="no target"):
        load_target("x")
    assert issubclass(TargetError, ValueError)


def test_the_command_loads_no_optional_package() -> None:
    code = (
        "import sys; from jorge import cli; status = cli.main(['cost', 'torch.nn:Linear', '--args', 'in_features=4', "
        "'out_features=4', '--input', '4', '--rows', '0']); "
        "others = {'transformers', 'torchvision', 'rich', 'matplotlib', 'pandas', 'jorge_lab'}; "
        "print(status, sorted(others & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "0 []"


def test_a_terminal_of_80_columns_holds_the_table(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where names and shapes are as long as those of common networks."""
    shapes = {
        "model.layers.31.mlp.gate_up_proj.weight": (28672, 4096),
        "model.embed_tokens.weight": (128256, 4096),
        "backbone.layer4.2.downsample.conv3.weight": (2048, 1024, 3, 3),
    }
    text = estimate(shapes, model_flops=1e15).text()
    assert max(map(len, text.splitlines())) <= 80
    assert "…proj.weight" in text
    status, out, _ = run(capsys, "cost_models:mlp", "--input", "8", "--budget", "50%", "--world-size", "4")
    assert status == 0
    assert max(map(len, out.splitlines())) <= 80
