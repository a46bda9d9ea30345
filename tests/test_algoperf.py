"""The submissions for AlgoPerf, called as its runner calls them, with a workload of its API that is made here."""

import enum
import importlib
import inspect
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from jorge import Jorge
from jorge.integrations.algoperf import get_batch_size

EXAMPLES = Path(__file__).parents[1] / "examples"
FOLDERS = ("algoperf_external", "algoperf_self_tuning")
STEPS = 16


class ForwardPassMode(enum.Enum):
    TRAIN = 0
    EVAL = 1


class Workload:
    """What submissions see of one: `[16, 8]` in, ten classes out, some examples masked."""

    step_hint = STEPS

    def model_fn(
        self,
        *,
        params: nn.Module,
        augmented_and_preprocessed_input_batch: dict[str, torch.Tensor],
        model_state: Any,
        mode: Any,
        rng: Any,
        update_batch_norm: bool,
        dropout_rate: float = 0.0,
    ) -> tuple[torch.Tensor, Any]:
        assert mode.name == "TRAIN"
        assert params.training
        return params(augmented_and_preprocessed_input_batch["inputs"]), model_state

    def loss_fn(
        self, *, label_batch: torch.Tensor, logits_batch: torch.Tensor, mask_batch: Any, label_smoothing: float
    ) -> dict[str, torch.Tensor]:
        each = nn.functional.cross_entropy(logits_batch, label_batch, reduction="none", label_smoothing=label_smoothing)
        return {"summed": (each * mask_batch).sum(), "n_valid_examples": mask_batch.sum(), "per_example": each}


def hyperparameters(folder: str) -> Any:
    """The upper corner of the search space; the runner has none for self-tuning."""
    path = EXAMPLES / folder / "tuning_search_space.json"
    if not path.exists():
        return None
    space = json.loads(path.read_text())
    return SimpleNamespace(**{k: v["max"] if "max" in v else v["feasible_points"][-1] for k, v in space.items()})


def train(folder: str, path: Path, *, resume: bool = False) -> tuple[list[float], nn.Module]:
    """The runner's loop: what is saved of the optimizer's dict is the `state_dict` of each of its values."""
    submission = importlib.import_module(f"examples.{folder}.submission")
    torch.manual_seed(0)
    means = torch.randn(10, 8)
    targets = torch.randint(10, (STEPS, 64))
    inputs = means[targets] + 0.1 * torch.randn(STEPS, 64, 8)
    weights = (torch.arange(64) < 60).float()
    queue = ({"inputs": x, "targets": y, "weights": weights} for x, y in zip(inputs, targets, strict=True))
    model, workload = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 10)), Workload()
    tuned = hyperparameters(folder)
    state = submission.init_optimizer_state(workload, model, None, tuned, 0)
    losses = []
    if resume:
        saved = torch.load(path, weights_only=True)
        model.load_state_dict(saved["model"])
        for name in state:
            state[name].load_state_dict(saved[name])
    for step in range(STEPS):
        batch = submission.data_selection(workload, queue, state, model, None, tuned, step, 0)
        if resume and step < STEPS // 2:
            continue
        common = {"hyperparameters": tuned, "loss_type": None, "optimizer_state": state, "eval_results": []}
        common |= {"workload": workload, "current_params_types": None, "model_state": None, "global_step": step}
        state, model, _ = submission.update_params(current_param_container=model, batch=batch, rng=0, **common)
        state, model, _ = submission.prepare_for_eval(
            current_param_container=model, rng=0, **{**common, "optimizer_state": state}
        )
        losses.append(nn.functional.cross_entropy(model(inputs.flatten(0, 1)), targets.flatten()).item())
        if step == STEPS // 2 - 1 and not resume:
            torch.save({"model": model.state_dict(), **{k: v.state_dict() for k, v in state.items()}}, path)
    return losses, model


def as_one(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_submission_learns_and_resumes_to_the_bit(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, spec = ModuleType("algoperf"), ModuleType("algoperf.spec")
    package.spec, spec.ForwardPassMode = spec, ForwardPassMode  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "algoperf", package)
    monkeypatch.setitem(sys.modules, "algoperf.spec", spec)
    losses, whole = train(folder, tmp_path / "half.pt")
    assert losses[-1] < 0.95 * losses[0]
    found, resumed = train(folder, tmp_path / "half.pt", resume=True)
    assert found[-1] == losses[-1]
    assert torch.equal(as_one(whole), as_one(resumed))
    monkeypatch.setattr(Jorge, "load_state_dict", lambda self, state: None)
    assert not torch.equal(as_one(whole), as_one(train(folder, tmp_path / "half.pt", resume=True)[1]))


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_submission_has_what_the_runner_looks_for(folder: str) -> None:
    submission = importlib.import_module(f"examples.{folder}.submission")
    for name in ("get_batch_size", "init_optimizer_state", "update_params", "prepare_for_eval", "data_selection"):
        assert callable(getattr(submission, name))
    assert "train_state" not in inspect.signature(submission.update_params).parameters


def test_an_unknown_workload_is_a_value_error_as_the_runner_expects() -> None:
    assert get_batch_size("imagenet_resnet") == 1024
    with pytest.raises(ValueError, match="unsupported workload: imagenet_resnet_other"):
        get_batch_size("imagenet_resnet_other")
