"""From a finished run's folder, or an exported one, back to a model."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from arelu_tl.backbone import build_architecture
from arelu_tl.errors import ArtefactError, BackboneError, ConfigError, DataError, SurgeryError
from arelu_tl.exporting.folder import is_export, read_export
from arelu_tl.records import runs
from arelu_tl.records.weights import load_weights
from arelu_tl.study.card import ModelCard
from arelu_tl.surgery import restore_sites


def load_model(path: Path | str) -> tuple[nn.Module, ModelCard]:
    """Rebuild a trained model: the architecture, swapped at the recorded sites, with its weights loaded strictly.

    Args:
        path: a run folder (its best checkpoint is taken) or an exported safetensors folder.

    Returns:
        (model in eval mode on the CPU, its card). ``card.classes[i]`` names logit i and ``card.data_config`` the
        preprocessing, as ``arelu_tl.data.eval_transform`` takes it.

    Raises:
        DataError: there is neither at ``path``.
        ArtefactError: the files are damaged or do not belong together.
    """
    path = Path(path)
    if is_export(path):
        weights, described = read_export(path)
    elif runs.is_run(path):
        weights, described = load_weights(path / runs.BEST)
    elif runs.is_study(path):
        names = ", ".join(run.path.name for run in runs.load_study(path).runs)
        raise DataError(f"{path} is a study: name one of its runs ({names})")
    else:
        raise DataError(f"{path} is neither a run folder nor an exported one")
    card = ModelCard.from_json(described, path)
    try:
        model = build_architecture(
            card.architecture, num_classes=len(card.classes), img_size=card.img_size, model_args=card.model_args
        )
        restore_sites(model, card.sites, arm=card.arm)
        model.load_state_dict(weights, strict=True)
    except (BackboneError, ConfigError, SurgeryError, RuntimeError, KeyError, TypeError) as error:
        raise ArtefactError(f"{path}: card and weights do not fit: {' '.join(str(error).split())[:300]}") from None
    return model.eval(), card
