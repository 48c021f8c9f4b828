"""Load a model from a run's folder or from an exported folder."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from arelu_tl.backbone.loading import build_architecture
from arelu_tl.backbone.record import require_harmless
from arelu_tl.errors import ArtefactError, BackboneError, ConfigError, DataError, SurgeryError
from arelu_tl.models.export_folder import is_export, read_export
from arelu_tl.models.freeze import FrozenSite, put_site
from arelu_tl.records import runs
from arelu_tl.records.card import ModelCard
from arelu_tl.records.weights import load_weights, require_finite
from arelu_tl.surgery.apply import restore_sites
from arelu_tl.training.checkpoint import is_checkpoint, load_checkpoint_model


def load_model(path: Path | str) -> tuple[nn.Module, ModelCard]:
    """Rebuild a trained model and load its weights strictly.

    The activations are replaced at the recorded sites of the architecture.

    Args:
        path: a run folder (its best checkpoint is loaded), one of its checkpoints, or an exported
            safetensors folder.

    Returns:
        (model in eval mode on the CPU, its card). ``card.classes[i]`` names logit i, and
        ``card.data_config`` is the preprocessing, as ``arelu_tl.data.loader.eval_transform`` takes
        it.

    Raises:
        DataError: there is none of these at ``path``.
        ArtefactError: the files are damaged, do not belong together, hold NaN or infinite values,
            or have another format.
    """
    path = Path(path)
    if is_export(path):
        weights, described = read_export(path)
    elif runs.is_run(path):
        runs.require_known_format(path)
        weights, described = load_weights(path / runs.BEST)
    elif is_checkpoint(path) and runs.is_run(path.resolve().parents[1]):
        weights, described = _checkpoint(path)
    elif runs.is_study(path):
        names = ", ".join(run.path.name for run in runs.load_study(path).runs)
        raise DataError(f"{path} is a study: name one of its runs ({names})")
    else:
        raise DataError(
            f"{path} is neither a run folder nor a checkpoint in one nor an exported folder"
        )
    card = ModelCard.from_json(described, path)
    require_harmless(card.architecture, card.model_args, path)
    try:
        model = build_architecture(
            card.architecture,
            num_classes=len(card.classes),
            img_size=card.img_size,
            model_args=card.model_args,
        )
        if card.form != "timm":
            restore_sites(model, card.sites, arm=card.arm)
        for site in card.frozen_sites if card.form == "frozen" else ():
            put_site(model, FrozenSite(**site))
        require_finite(weights, str(path), model.state_dict)
        model.load_state_dict(weights, strict=True)
    except ArtefactError:
        raise
    except (
        BackboneError,
        ConfigError,
        SurgeryError,
        RuntimeError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
    ) as error:
        raise ArtefactError(
            f"{path}: card and weights do not fit: {' '.join(str(error).split())[:300]}"
        ) from None
    return model.eval(), card


def _checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Read (weights, card) of a run's checkpoint.

    The weights are as trained, not averaged, and need not have been evaluated.
    """
    run = path.resolve().parents[1]
    runs.require_known_format(run)
    weights, step = load_checkpoint_model(path)
    _, described = load_weights(run / runs.BEST)
    if described is None:
        raise ArtefactError(f"{run / runs.BEST}: no arelu-tl model card in it")
    record = runs.load_run(run)
    evaluated = {row["step"]: row for row in record.curve("val")}
    row = None if record.config.model_ema else evaluated.get(step)
    reached = (
        {"top1": None, "loss": None} if row is None else {"top1": row["top1"], "loss": row["loss"]}
    )
    return weights, {**described, "step": step, **reached}
