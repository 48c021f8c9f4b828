"""Load a timm model by name, with its weights and its data configuration."""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from timm.models import parse_model_name
from torch import nn

from arelu_tl.backbone.embedded import (
    EMBEDDED_ARCHITECTURE,
    embedded_source,
    embedded_weights,
    load_embedded,
)
from arelu_tl.backbone.weights_file import load_weights_file
from arelu_tl.errors import BackboneError
from arelu_tl.records.storage import sha256_file
from arelu_tl.records.weights import require_finite


@dataclass(frozen=True)
class Backbone:
    """A pretrained model with its original classifier.

    Attributes:
        model: the timm model, in eval mode, on the CPU.
        name: the requested name.
        data_config: input_size (C, H, W), mean, std, interpolation, crop_pct, crop_mode; plain JSON
            types.
        weights: description of the weights' source; "random" if none were loaded.
        license: licence of the weights, if timm knows it.
        model_args: arguments of ``timm.create_model`` that differ from the architecture's defaults
            (those of a folder or a hub model, such as output_stride), in JSON types; needed to
            rebuild the architecture.
    """

    model: nn.Module
    name: str
    data_config: dict[str, Any]
    weights: str
    license: str | None = None
    model_args: dict[str, Any] = field(default_factory=dict)


def load_backbone(
    name: str,
    *,
    pretrained: bool = True,
    pretrained_path: Path | None = None,
    img_size: int | None = None,
    drop: float = 0.0,
    drop_path: float | None = None,
    seed: int = 0,
) -> Backbone:
    """Build ``name`` with timm and load its weights.

    Args:
        name: ``arch``, ``arch.tag``, ``hf-hub:USER/NAME`` or ``local-dir:PATH``.
        pretrained: False keeps timm's random initialisation.
        pretrained_path: a file of weights (safetensors, or a checkpoint read with
            ``weights_only=True``) to use instead of timm's download; see ``load_weights_file``.
            ``weights`` reports any conversion.
        img_size: side of the square input in pixels; that of the pretrained model if None.
        drop: dropout rate before the classifier.
        drop_path: stochastic depth rate; the architecture's default if None.
        seed: seed of the random weights, if none are loaded; the global generator is not changed.

    Raises:
        BackboneError: the model is unknown, or its weights are unreachable or do not fit.
        ArtefactError: the file of weights is damaged, could execute code, or holds NaN or infinite
            values.
    """
    model: nn.Module
    if pretrained_path is not None:
        model = build_architecture(name, img_size=img_size, drop=drop, drop_path=drop_path)
        done = load_weights_file(model, pretrained_path, name, classifier_names(model))
        weights = (
            f"file {pretrained_path.name} "
            f"({'; '.join([f'SHA-256 {sha256_file(pretrained_path)[:16]}', *done])})"
        )
    elif not pretrained:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = build_architecture(name, img_size=img_size, drop=drop, drop_path=drop_path)
        weights = f"random (seed {seed})"
    elif name == EMBEDDED_ARCHITECTURE and (embedded := embedded_weights()) is not None:
        model = build_architecture(name, img_size=img_size, drop=drop, drop_path=drop_path)
        load_embedded(model, embedded)
        require_finite(model.state_dict(), str(embedded), dict)
        weights = embedded_source()
    else:
        model = _download(name, img_size=img_size, drop=drop, drop_path=drop_path)
        require_finite(
            model.state_dict(),
            f"the weights of {name}",
            lambda: build_architecture(name, img_size=img_size).state_dict(),
        )
        weights = str(
            pretrained_cfg(model).get("hf_hub_id") or pretrained_cfg(model).get("url") or name
        )
    model.eval()
    return Backbone(
        model=model,
        name=name,
        data_config=_data_config(model, img_size),
        weights=weights,
        # timm knows the licence of its own weights, not that of a file.
        license=pretrained_cfg(model).get("license")
        if pretrained and pretrained_path is None
        else None,
        model_args=_model_args(model),
    )


def build_architecture(
    name: str,
    *,
    num_classes: int | None = None,
    img_size: int | None = None,
    drop: float = 0.0,
    drop_path: float | None = None,
    model_args: dict[str, Any] | None = None,
) -> nn.Module:
    """Build the bare architecture with random weights.

    Nothing is downloaded except the description of an ``hf-hub:`` model.

    Raises:
        BackboneError: timm does not know the architecture, or it does not take such settings.
    """
    kwargs = dict(model_args or {})
    return _create(
        name,
        kwargs,
        pretrained=False,
        num_classes=num_classes,
        img_size=img_size,
        drop=drop,
        drop_path=drop_path,
    )


# Arguments that are set anew when a model is rebuilt, or that matter only in training.
_OWN_ARGS = frozenset(
    {"num_classes", "img_size", "drop_rate", "drop_path_rate", "pretrained", "pretrained_cfg"}
)


def _model_args(model: nn.Module) -> dict[str, Any]:
    given: dict[str, Any] = getattr(model, "_model_args", {})
    plain = (str, int, float, bool, list, tuple, type(None))
    return {k: v for k, v in given.items() if k not in _OWN_ARGS and isinstance(v, plain)}


def _create(
    name: str,
    kwargs: dict[str, Any],
    *,
    pretrained: bool,
    num_classes: int | None = None,
    img_size: int | None,
    drop: float,
    drop_path: float | None,
) -> nn.Module:
    scheme, location = _check_name(name)
    if num_classes is not None:
        kwargs["num_classes"] = num_classes
    if drop:
        kwargs["drop_rate"] = drop
    if drop_path is not None:
        kwargs["drop_path_rate"] = drop_path
    attempts = [kwargs]
    if img_size is not None and scheme == "timm" and not _has_fixed_size(location):
        # Fully convolutional models take any size and lack this argument.
        attempts = [kwargs]
    elif img_size is not None:
        attempts = [{**kwargs, "img_size": img_size}, kwargs]
    for attempt, arguments in enumerate(attempts):
        try:
            return timm.create_model(name, pretrained=pretrained, **arguments)
        except TypeError as error:
            if "img_size" in str(error) and attempt + 1 < len(attempts):
                continue
            raise BackboneError(
                f"{name} does not take these settings: {_one_line(error)}"
            ) from error
        except Exception as error:
            if scheme == "hf-hub" and _is_out_of_reach(error):
                raise _unreachable(name, scheme, location, error) from error
            # Other people's models can be broken in any way, but an error in timm's own
            # architecture is a bug.
            if scheme == "timm":
                raise
            raise BackboneError(f"{name} cannot be loaded: {_one_line(error)}") from error
    raise AssertionError("unreachable")


def _has_fixed_size(name: str) -> bool:
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return bool(config and config.fixed_input_size)


def _check_name(name: str) -> tuple[str, str]:
    """Split a model name whose architecture timm knows into (scheme, rest).

    Raises:
        BackboneError: timm does not know it; the message lists the nearest names.
    """
    try:
        scheme, location = parse_model_name(name)
    except (ValueError, AssertionError) as error:
        raise BackboneError(
            f"{name!r} is no model name: {_place(name) or _one_line(error)}"
        ) from None
    scheme = scheme or "timm"
    if scheme != "timm":
        if scheme == "local-dir" and not (Path(location) / "config.json").is_file():
            raise BackboneError(f"{name}: there is no config.json in {location}")
        return scheme, location
    architecture, _, tag = location.partition(".")
    if not timm.is_model(architecture):
        raise BackboneError(f"unknown model {name!r}: {_place(name) or _near(architecture)}")
    if tag:
        tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
        if tag not in tags:
            raise BackboneError(
                f"unknown weights {name!r}: {architecture} has {', '.join(tags) or 'none'}"
            )
    return scheme, location


def _place(name: str) -> str:
    """Return the location that a name refers to."""
    if Path(name).is_dir():
        return (
            f"a model's folder is named local-dir:{name}, a trained run is given to evaluate, "
            "predict or export"
        )
    return (
        "a file of weights is given as `pretrained_path`, its architecture as `model`"
        if Path(name).is_file()
        else ""
    )


def _near(architecture: str) -> str:
    near = difflib.get_close_matches(architecture, timm.list_models(), n=3, cutoff=0.5)
    return f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists what there is"


def _download(
    name: str, *, img_size: int | None, drop: float, drop_path: float | None
) -> nn.Module:
    scheme, location = _check_name(name)
    if scheme == "timm":
        config = timm.get_pretrained_cfg(location, allow_unregistered=False)
        if config is None or not config.has_weights:
            raise BackboneError(
                f"timm has no pretrained weights for {name!r}: give `pretrained_path=FILE` or "
                "start from `pretrained=False`"
            )
    try:
        _probe_hub(_hub_file(scheme, location))
        return _create(name, {}, pretrained=True, img_size=img_size, drop=drop, drop_path=drop_path)
    except BackboneError:
        raise
    except Exception as error:
        if not _is_out_of_reach(error):
            raise
        raise _unreachable(name, scheme, location, error) from error


def _unreachable(name: str, scheme: str, location: str, error: Exception) -> BackboneError:
    if type(error).__name__ == "HFValidationError":
        return BackboneError(f"{name!r} is no model name: {_one_line(error)}")
    return BackboneError(
        f"the weights of {name} cannot be downloaded ({_wanted_file(scheme, location)}; "
        f"{_reason(error)}): connect to the network once, or give them with `pretrained_path=FILE`"
    )


def _hub_file(scheme: str, location: str) -> tuple[str, str] | None:
    """Return (repository, file name) of the weights on the hub; None if they are elsewhere."""
    if scheme == "local-dir":
        return None
    if scheme != "timm":
        return location.partition("@")[0], "model.safetensors"
    config = timm.get_pretrained_cfg(location)
    if config is None or not config.hf_hub_id:
        return None
    return config.hf_hub_id, config.hf_hub_filename or "model.safetensors"


def _probe_hub(wanted: tuple[str, str] | None) -> None:
    """Make one quick request if the weights are not in the cache.

    Otherwise the hub's client would retry for minutes.
    """
    from huggingface_hub import get_session, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if wanted is None or HF_HUB_OFFLINE or isinstance(try_to_load_from_cache(*wanted), str):
        return
    get_session().head(hf_hub_url(*wanted), timeout=10)


def _is_out_of_reach(error: BaseException) -> bool:
    """Whether a download failed because the network or the file was missing.

    Any other exception is a bug, and is not translated.
    """
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    kinds = (
        OSError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        HfHubHTTPError,
        HFValidationError,
    )
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, kinds) or type(seen).__module__.partition(".")[0] in {
            "httpx",
            "httpx2",
            "httpcore",
            "requests",
        }:
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _reason(error: BaseException) -> str:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return "HF_HUB_OFFLINE is set and the cache does not hold it"
    return (
        "no network, or the hub does not answer"
        if not _is_missing(error)
        else "the hub has no such file"
    )


def _is_missing(error: BaseException) -> bool:
    from huggingface_hub.errors import (
        EntryNotFoundError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    missing = (EntryNotFoundError, RepositoryNotFoundError)
    return isinstance(error, missing) and not isinstance(error, LocalEntryNotFoundError)


def _wanted_file(scheme: str, location: str) -> str:
    on_hub = _hub_file(scheme, location)
    if on_hub is not None:
        return f"looked for {on_hub[1]} of {on_hub[0]}"
    config = timm.get_pretrained_cfg(location) if scheme == "timm" else None
    return f"looked for {Path(str(config.url)).name if config is not None else location}"


def expected_data_config(name: str, img_size: int | None) -> dict[str, Any] | None:
    """Return the ``data_config`` that ``load_backbone`` will give, without building anything.

    None for models that timm does not describe itself: a model of the hub or a folder, or a name
    that does not exist.
    """
    # load_backbone reports what is wrong with the name
    try:
        scheme, location = parse_model_name(name)
        config = (
            timm.get_pretrained_cfg(location, allow_unregistered=False)
            if scheme in (None, "", "timm")
            else None
        )
    except (
        ValueError,
        AssertionError,
        RuntimeError,
    ):
        return None
    return None if config is None else _plain_data_config(img_size, pretrained_cfg=config.to_dict())


def _data_config(model: nn.Module, img_size: int | None) -> dict[str, Any]:
    return _plain_data_config(img_size, pretrained_cfg=pretrained_cfg(model), model=model)


def _plain_data_config(img_size: int | None, **described: Any) -> dict[str, Any]:
    config = resolve_data_config({} if img_size is None else {"img_size": img_size}, **described)
    # JSON would turn tuples into lists; using lists everywhere keeps records comparable.
    return {k: list(v) if isinstance(v, tuple) else v for k, v in config.items()}


def reset_head(model: nn.Module, num_classes: int, *, seed: int) -> None:
    """Give ``model`` a new classifier whose initial values depend only on ``seed``.

    Earlier use of the global generator has no influence.

    Raises:
        BackboneError: the model's classifier cannot be replaced.
    """
    reset: Callable[..., None] | None = getattr(model, "reset_classifier", None)
    if reset is None:
        raise BackboneError(f"{type(model).__name__} has no classifier that can be exchanged")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reset(num_classes)


def pretrained_cfg(model: nn.Module) -> dict[str, Any]:
    """Return timm's description of the model and its weights; {} for a module not from timm."""
    config: dict[str, Any] | None = getattr(model, "pretrained_cfg", None)
    return config or {}


def classifier_names(model: nn.Module) -> list[str]:
    """Return qualified names of the classifier's modules, as timm's configuration lists them."""
    listed = pretrained_cfg(model).get("classifier")
    names = [listed] if isinstance(listed, str) else list(listed or [])
    # timm's configuration of a distilled architecture names a second head, which the plain one
    # lacks.
    present = {name for name, _ in model.named_modules()}
    return [name for name in names if name in present]


def activation_counts(model: nn.Module) -> dict[str, int]:
    """Count the activation modules as {class name: count}, most frequent first."""
    kinds = ("timm.layers.activations", nn.modules.activation.__name__)
    counts = Counter(
        type(m).__name__
        for m in model.modules()
        if type(m).__module__ in kinds and not isinstance(m, nn.MultiheadAttention)
    )
    return dict(counts.most_common())


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:297] + "..."
