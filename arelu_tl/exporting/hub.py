"""Upload an exported model to the Hugging Face Hub: its files and a README, in one commit."""

from __future__ import annotations

import json
import os
import warnings
from typing import TYPE_CHECKING

from arelu_tl.errors import ConfigError, StorageError
from arelu_tl.exporting.hub_card import HubFile, readme, repo_problem
from arelu_tl.records.card import ModelCard

if TYPE_CHECKING:
    from arelu_tl.exporting.report import ExportReport


def check_hub(repo: str) -> None:
    """Check that an upload can be tried, before the export is made.

    It uses no network, unless the hub client has to renew a token.

    Args:
        repo: USER/NAME.

    Raises:
        ConfigError: ``repo`` is not a valid name, the hub is switched off, or there is no token.
    """
    _token(repo)


def _token(repo: str) -> str:
    from huggingface_hub import constants, get_token

    if repo.count("/") != 1:
        raise ConfigError(f"`push_to_hub` {repo!r}: give it as USER/NAME")
    if problem := repo_problem(repo):
        raise ConfigError(f"`push_to_hub`: {_one_line(problem)}")
    if constants.HF_HUB_OFFLINE:
        raise ConfigError("`push_to_hub`: HF_HUB_OFFLINE is set: unset it to upload")
    try:
        token = get_token()
    except Exception as error:  # renewing a token in CI raises its own classes of error
        raise ConfigError(
            f"`push_to_hub`: there is no token for the hub: {_one_line(error)}"
        ) from error
    if not token:
        raise ConfigError(
            "`push_to_hub`: not logged in to the hub: log in with `hf auth login` or set HF_TOKEN"
        )
    return token


def push_to_hub(report: ExportReport, card: ModelCard, repo: str, *, private: bool = False) -> str:
    """Upload an export together with a generated README.md.

    The repository is created if it does not exist; other files in it stay.

    Args:
        report: of the export; its files are at ``report.path``.
        card: of the exported model.
        repo: USER/NAME.
        private: create the repository as private; an existing one must already be private.
            False means the account's default.

    Returns:
        the commit's URL.

    Raises:
        ConfigError: see ``check_hub``.
        StorageError: the hub is unreachable or refuses. The export stays on disk.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    token = _token(repo)
    file = _hub_file(report)
    local = [report.path / name for name in report.files] if report.path.is_dir() else [report.path]
    operations = [CommitOperationAdd("README.md", readme(report, card, repo, file).encode())]
    api = HfApi(token=token)
    try:
        operations += [
            CommitOperationAdd(path.name if report.path.is_dir() else file.name, path)
            for path in local
        ]
        # False would override an organisation's rule that new repositories are private.
        api.create_repo(repo, private=private or None, exist_ok=True)
        # For an existing repository the hub silently ignores `private`.
        is_public = private and not api.repo_info(repo).private
        if not is_public:
            with warnings.catch_warnings():
                # The hub's warnings about the metadata are nothing that the user can fix.
                warnings.simplefilter("ignore")
                message = f"{card.arm} on {card.architecture}: {file.kind}, arelu-tl {card.version}"
                return str(api.create_commit(repo, operations, commit_message=message).commit_url)
    except Exception as error:
        # The client's network library and its upload library raise their own classes of error.
        reason = _reason(error, repo, api.endpoint).replace(token, "***")
        raise StorageError(
            f"`push_to_hub`: {reason}; the export itself is at {report.path}"
        ) from error
    raise StorageError(
        f"`push_to_hub`: {repo} exists and is public, nothing was uploaded: choose another name, "
        f"or make it private on the hub; the export itself is at {report.path}"
    )


def _hub_file(report: ExportReport) -> HubFile:
    path = report.path
    if path.is_dir():
        return HubFile("safetensors", "model.safetensors")
    # The user chooses the file's name, so the format is read from its content. A .pt2 file is a
    # zip archive.
    try:
        with path.open("rb") as stream:
            kind = "pt2" if stream.read(4) == b"PK\x03\x04" else "onnx"
    except OSError as error:
        raise StorageError(
            f"`push_to_hub`: {path} cannot be read: {os.strerror(error.errno or 0)}"
        ) from error
    name = path.name if path.suffix.lower() == f".{kind}" else f"{path.name}.{kind}"
    if kind == "pt2":
        return HubFile(kind, name)
    from arelu_tl.models.onnx_session import OnnxSession

    session = OnnxSession(path)
    return HubFile(
        kind, name, session.takes_pictures, str(session.card.get("precision", "float32"))
    )


def _reason(error: Exception, repo: str, endpoint: str) -> str:
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status == 401:
            return (
                "the hub does not accept the token (401): "
                "log in anew with `hf auth login` or set another HF_TOKEN"
            )
        if status == 403:
            return f"the token may not write to {repo} (403): take one with write permission there"
        return f"the hub refuses ({status}): {_one_line(error.server_message or error)}"
    if type(error).__module__.startswith(("httpx", "httpcore", "requests")):
        return f"the connection to {endpoint} failed: {_one_line(error)}"
    if isinstance(error, (json.JSONDecodeError, KeyError)):
        return f"{endpoint} does not answer as a hub does"
    return f"the upload failed: {_one_line(error)}"


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
