"""Read weights from an untrusted file safely, unwrap them, and check them against the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from timm.models import clean_state_dict
from timm.models import load_state_dict as timm_load_state_dict
from torch import Tensor, nn

from arelu_tl.errors import ArtefactError, BackboneError
from arelu_tl.records.weights import require_finite

State = dict[str, Tensor]
# BatchNorm's batch counter, which torch before 0.4.1 lacked; pretrained weights do not depend on
# it.
_COUNTER = ".num_batches_tracked"


def load_weights_file(
    model: nn.Module, path: Path, name: str, classifier: Iterable[str]
) -> list[str]:
    """Load the file's weights into ``model``.

    If the file has no classifier, or one of another shape, the model keeps its own.

    Accepted are safetensors files and checkpoints; EMA weights take precedence over raw ones. The
    weights may be nested under a key, have a wrapper's prefix (``module.``, ``model.``,
    ``backbone.`` or any other), and lack ``num_batches_tracked``.

    Args:
        model: the model to load into.
        path: the file.
        name: name of the model, for messages.
        classifier: names of the modules that make up its classifier.

    Returns:
        Descriptions of the conversions that were necessary.

    Raises:
        BackboneError: the file does not exist, or does not fit; the message names the first keys.
        ArtefactError: the file is damaged, could execute code, or holds no tensors, or NaN or
            infinite values.
    """
    if not path.is_file():
        raise BackboneError(f"`pretrained_path` {path}: no such file")
    given, done = _read(path)
    wanted = model.state_dict()
    heads = tuple(f"{n}." for n in classifier)
    body = {key for key in wanted if not key.startswith(heads) and not key.endswith(_COUNTER)}
    prefix = _prefix(given, body, path)
    if prefix:
        others = [key for key in given if not key.startswith(prefix)]
        given = {
            key.removeprefix(prefix): value
            for key, value in given.items()
            if key.startswith(prefix)
        }
        done.append(
            f"prefix {prefix!r} taken off" + (f", {_some(others)} left out" if others else "")
        )
    uncounted = [key for key in wanted if key.endswith(_COUNTER) and key not in given]
    if uncounted:
        done.append("without num_batches_tracked")
    foreign_head = {
        key
        for key in wanted
        if key.startswith(heads) and (key not in given or given[key].shape != wanted[key].shape)
    }
    left = foreign_head.union(uncounted)
    faults = _faults(given, wanted, left)
    if faults:
        raise BackboneError(
            f"`pretrained_path` {path} does not fit {name}: "
            f"{'; '.join(faults)}{_looks(given, body)}"
        )
    taken = {key: value for key, value in given.items() if key not in left}
    require_finite(taken, f"`pretrained_path` {path}", lambda: wanted)
    model.load_state_dict(taken, strict=False)
    return done


def _read(path: Path) -> tuple[State, list[str]]:
    """Return (state dict, its place in the file if timm would not look there)."""
    try:
        found: Any = timm_load_state_dict(str(path), use_ema=True, device="cpu", weights_only=True)
    except Exception as error:
        # Each reader of foreign files raises errors of its own; here all mean the same.
        message = " ".join(str(error).split())
        raise ArtefactError(
            f"`pretrained_path` {path}: not weights that can be loaded safely: {message[:300]}"
        ) from error
    if _is_state(found):
        return found, []
    nested = (
        [key for key, value in found.items() if _is_state(value)] if isinstance(found, dict) else []
    )
    if len(nested) > 1:
        raise ArtefactError(
            f"`pretrained_path` {path}: holds several nets' weights ({_some(nested)}): save the "
            "one alone"
        )
    if not nested:
        holds = (
            f"what it holds is {_some(list(found))}"
            if isinstance(found, dict)
            else f"it is a {type(found).__name__}"
        )
        raise ArtefactError(f"`pretrained_path` {path}: holds no state dict of tensors; {holds}")
    return clean_state_dict(found[nested[0]]), [f"under {nested[0]!r}"]


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    )


def _prefix(given: State, body: set[str], path: Path) -> str:
    """Return the prefix that a wrapper has put before the keys of ``body``.

    "" if the keys are present without a prefix, or if no prefix yields them all.
    """
    if body <= given.keys():
        return ""
    found = Counter(
        key[: at + 1]
        for key in given
        for at, sign in enumerate(key)
        if sign == "." and key[at + 1 :] in body
    )
    whole = [prefix for prefix, count in found.items() if count == len(body)]
    if len(whole) > 1:
        raise BackboneError(
            f"`pretrained_path` {path}: holds several nets' weights ({_some(whole)}): save the "
            "one alone"
        )
    # If only some keys fit, report the rest as missing.
    most = max(found, key=lambda prefix: found[prefix], default="")
    return whole[0] if whole else most if most and found[most] > len(body & given.keys()) else ""


def _faults(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], left: set[str]) -> list[str]:
    missing = [key for key in wanted if key not in given and key not in left]
    surplus = [key for key in given if key not in wanted]
    misshapen = [
        key
        for key in wanted
        if key in given and given[key].shape != wanted[key].shape and key not in left
    ]
    kinds = (("missing", missing), ("unexpected", surplus), ("of another shape", misshapen))
    return [
        f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for what, keys in kinds
        if keys
    ]


# Typical keys of other libraries' state dicts, in the order in which they are tried.
_STRANGERS: tuple[tuple[str, Callable[[str], bool]], ...] = (
    (
        "a transformers model's",
        lambda key: ".attention.self." in key or key.startswith(("bert.", "vit.embeddings.")),
    ),
    (
        "a torchvision detector's or segmenter's",
        lambda key: key.startswith(("backbone.body.", "roi_heads.", "rpn.")),
    ),
    ("weights with a LoRA's additions", lambda key: "lora_" in key),
    ("a model's that arelu-tl operated on", lambda key: key.endswith((".alpha", ".beta"))),
    ("a quantised model's", lambda key: "_packed_params" in key or key.endswith(".zero_point")),
)


def _looks(given: State, body: set[str]) -> str:
    strange = [key for key in given if key not in body]
    return next(
        (f"; they look like {what}" for what, seen in _STRANGERS if any(map(seen, strange))), ""
    )


def _some(keys: list[str]) -> str:
    named = ", ".join(str(key) for key in keys[:3])
    return f"{named}, ... ({len(keys)} in all)" if len(keys) > 3 else named
