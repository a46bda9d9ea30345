"""What `jorge cost TARGET` may name: a callable, a Hugging Face config, or a file of weights.

Nothing here allocates weights: modules are built on the meta device, checkpoints are mapped and not read.
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

#: Dtypes of the safetensors format that a parameter may have; others are counters and buffers.
_SAFETENSORS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
#: Where training programs put the weights in a checkpoint of more than that.
_NESTED = ("state_dict", "model_state_dict", "model")
#: The header of a safetensors file is at most this long, by its specification.
_LONGEST_HEADER = 100_000_000


class TargetError(ValueError):
    """A target that cannot be loaded; the message says why, and what to do."""


def load_target(target: str, arguments: Sequence[str] = ()) -> Any:
    """What a target stands for: a module on the meta device, or a mapping of names to tensors without memory.

    Args:
        target: `module:callable`, which returns a module, a mapping of named tensors or shapes, or a Hugging Face
            config; a directory or `.json` file with such a config; a state dict in a `.pt`, `.pth`, `.bin` or
            `.safetensors` file. Paths go first where both would do.
        arguments: `key=value` for the callable; values are Python literals, or else strings.

    Raises:
        TargetError: not found, not importable, not understood.

    >>> load_target("torch.nn:Linear", ["in_features=3", "out_features=2"]).weight.device
    device(type='meta')
    """
    path = Path(target)
    if path.is_dir() or (path.suffix == ".json" and path.is_file()):
        _no_arguments(target, arguments)
        return _from_config(_read_config(path / "config.json" if path.is_dir() else path), str(path))
    if path.suffix in (".pt", ".pth", ".bin", ".safetensors") and ":" not in path.name:
        _no_arguments(target, arguments)
        if not path.is_file():
            raise TargetError(f"{target}: no such file")
        return _safetensors(path) if path.suffix == ".safetensors" else _checkpoint(path)
    module, colon, name = target.partition(":")
    if not (colon and module and name):
        raise TargetError(
            f"{target!r} is no target: expected module:callable, such as torchvision.models:resnet50, a directory or "
            ".json file with a Hugging Face config, or a .pt, .pth, .bin or .safetensors file that exists"
        )
    return _called(target, imported(module, name), _keywords(arguments))


def token_input(model: Any, batch: int, tokens: int) -> Any:
    """A sample of token numbers without memory, `[batch, tokens]`; for an encoder and decoder, the same to both."""
    numbers = torch.empty(batch, tokens, dtype=torch.long, device="meta")
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return {"input_ids": numbers, "decoder_input_ids": numbers}
    return numbers


def _no_arguments(target: str, arguments: Sequence[str]) -> None:
    if arguments:
        raise TargetError(f"{target}: only module:callable takes arguments")


def _keywords(arguments: Sequence[str]) -> dict[str, Any]:
    found = {}
    for text in arguments:
        key, equals, value = text.partition("=")
        if not (equals and key.isidentifier()):
            raise TargetError(f"an argument is written key=value, got {text!r}")
        try:
            found[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[key] = value
    return found


def imported(module: str, name: str) -> Any:
    """A callable by the names of its module and its own.

    Raises:
        TargetError: it cannot be imported, or is no callable.
    """
    if os.getcwd() not in sys.path:  # an installed command does not see the directory it is called in
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        whole = error.name == module.partition(".")[0]
        hint = f": run the command in its folder, or pip install {error.name}" if whole else ""
        raise TargetError(f"{error.name} is not installed or not on the path{hint}") from error
    except Exception as error:  # whatever a module may raise
        raise TargetError(f"{module} cannot be imported: {_line(error)}") from error
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except Exception as error:  # lazy modules raise their own kinds
            raise TargetError(f"{module} has no {name}: {_line(error)}") from error
    if not callable(found):
        raise TargetError(f"{module}:{name} is a {type(found).__name__}, not a callable")
    return found


def _called(target: str, build: Any, keywords: dict[str, Any]) -> Any:
    try:
        with torch.device("meta"):
            made = build(**keywords)
    except Exception as error:  # whatever a model's constructor may raise
        raise TargetError(f"{target} cannot be built on the meta device: {_line(error)}") from error
    if isinstance(made, (nn.Module, dict)):
        return made
    if hasattr(made, "model_type") and hasattr(made, "to_dict"):
        return _from_config(made, target)
    raise TargetError(f"{target} returned a {type(made).__name__}: expected a module, a config or a dict of tensors")


def _line(error: BaseException) -> str:
    """The first line of an error, cut short: some libraries list all that they know."""
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {textwrap.shorten(lines[0], 200, placeholder=' …')}"


def _transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        raise TargetError(
            f"{error.name} is not installed; a Hugging Face config needs: pip install transformers"
        ) from None


def _read_config(path: Path) -> Any:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TargetError(f"{path}: no such file; a directory must hold a Hugging Face config.json") from None
    except (OSError, ValueError) as error:
        raise TargetError(f"{path} cannot be read as JSON: {_line(error)}") from error
    if not isinstance(data, dict) or "model_type" not in data:
        raise TargetError(f"{path} is no Hugging Face config: it has no model_type")
    try:
        return _transformers().AutoConfig.for_model(**data)
    except TargetError:
        raise
    except Exception as error:  # whatever a config may raise
        raise TargetError(f"{path}: {_line(error)}") from error


def _from_config(config: Any, where: str) -> Any:
    """The model that the config was saved with where it says so, with its head; else the bare one of its type."""
    transformers = _transformers()
    names = getattr(config, "architectures", None) or []
    if getattr(config, "use_cache", None) is False:
        config.use_cache = True  # without, models look for packed sequences in values, which meta tensors have not
    try:
        with torch.device("meta"):
            if names and hasattr(transformers, names[0]):
                return getattr(transformers, names[0])(config)
            return transformers.AutoModel.from_config(config)
    except Exception as error:  # whatever a model's constructor may raise
        raise TargetError(f"{where}: the model cannot be built on the meta device: {_line(error)}") from error


def _checkpoint(path: Path) -> dict[str, Any]:
    try:
        # Mapped, not read, and not to the meta device: that would tell tied weights apart.
        found = torch.load(path, weights_only=True, mmap=True, map_location="cpu")
    except Exception as error:  # pickle raises many kinds
        raise TargetError(
            f"{path} cannot be mapped as a state dict ({_line(error)}): save it with "
            "torch.save(model.state_dict(), path), by torch 1.6 or newer"
        ) from error
    for key in _NESTED:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
            break
    tensors = {k: v for k, v in found.items() if isinstance(v, Tensor)} if isinstance(found, dict) else {}
    if not tensors:
        raise TargetError(
            f"{path} holds no state dict: expected names and tensors, or those under {', '.join(_NESTED)}"
        )
    return tensors


def _safetensors(path: Path) -> dict[str, Tensor]:
    """Names, shapes and dtypes from the file's header: 8 bytes of length, then JSON."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_LONGEST_HEADER, path.stat().st_size - 8):
                raise ValueError("its length of the header is not possible")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        found = {
            name: torch.empty(entry["shape"], dtype=_SAFETENSORS[entry["dtype"]], device="meta")
            for name, entry in header.items()
            if not entry["dtype"].startswith(("I", "U", "BOOL"))
        }
    except KeyError as error:
        raise TargetError(f"{path}: weights of the kind {error} cannot be optimized") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise TargetError(f"{path} is no safetensors file: {error}") from error
    if not found:
        raise TargetError(f"{path} holds no floating-point tensors")
    return found
