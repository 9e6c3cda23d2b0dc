"""A run's model on the Hugging Face hub, with a card that says what it is."""

from __future__ import annotations

import io
from typing import Any

import torch
from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # which its documentation shows

from ..errors import MissingFileError, UsageError
from ..loading import load_whole_model, reading
from ..run_directory import RunDirectory
from .forward_time import time_forward
from .model_card import model_card
from .plots import ticket_figure, write_png
from .preparation import find_device


def push(run: str, name: str, *, private: bool = False) -> str:
    """Uploads the model of a finished run, its ticket and a model card to the Hugging Face hub.

    Args:
        run: the run's folder.
        name: of the repository, `name` or `owner/name`, which is made if it is not there.
        private: make it a private one.

    Returns:
        The repository's address.

    Raises:
        UsageError: before anything is sent: the run is not finished, its files are not as it wrote them, the name is
            none that a repository can have, or there is no token. After that: the hub cannot be reached or refuses,
            or the repository is there already and not private.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UsageError(f"{name}: no name for a repository of the hub: {error}") from None
    directory = RunDirectory(run)
    metrics = directory.read_metrics()
    directory.check_sums()
    if not directory.model.is_dir():
        raise MissingFileError(f"{directory.model}: no such folder; expected the model of the run")
    if get_token() is None:
        raise UsageError("the hub takes models with a token alone: log in with hf auth login, or set HF_TOKEN")
    contents: dict[str, Any] = {path.name: path for path in sorted(directory.model.iterdir())}
    forward = None
    if metrics["ticket"] is not None:
        contents[directory.ticket.name] = directory.ticket
        contents[directory.ticket_plot.name] = _picture(directory, metrics["ticket"])
        model = load_whole_model(str(directory.model), dtype=torch.float32)
        forward = time_forward(model, find_device(None))
    contents["README.md"] = str(model_card(directory, name, forward)).encode()
    additions = [CommitOperationAdd(path, content) for path, content in contents.items()]
    api = HfApi(endpoint=constants.ENDPOINT)
    with reading(f"{name}: not uploaded to {api.endpoint}"):
        address = api.create_repo(name, private=private or None, exist_ok=True)
        if private and not api.model_info(address.repo_id).private:
            raise UsageError("there is such a repository, which is public; give another name, or leave out --private")
        api.create_commit(address.repo_id, additions, commit_message="By earlybert push")
    return str(address)


def _picture(directory: RunDirectory, kept: dict[str, Any]) -> bytes:
    """The kept units of each layer, as PNG."""
    file = io.BytesIO()
    write_png(ticket_figure(directory.read_ticket(), kept["heads_of"], kept["neurons_of"]), file)
    return file.getvalue()
