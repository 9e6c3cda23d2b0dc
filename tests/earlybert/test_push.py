"""Uploading a model, to a stand-in for the hub that speaks its protocol."""

from __future__ import annotations

import base64
import json
import re
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import constants
from transformers import AutoModelForSequenceClassification

from earlybert import FinetuneArguments, finetune
from earlybert.cli import main
from earlybert.programs.forward_time import time_forward
from earlybert.programs.model_card import model_card
from earlybert.run_directory import RunDirectory


class Hub(ThreadingHTTPServer):
    """Keeps what it is sent: `repositories` by name whether they are private, `files` of the last commit by path."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.requests: list[str] = []
        self.tokens: dict[str, str | None] = {}
        self.repositories: dict[str, bool] = {}
        self.files: dict[str, bytes] = {}


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *args: Any) -> None:
        pass

    def answer(self, status: int, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def note(self) -> str:
        path = self.path.split("?")[0]
        self.server.requests.append(path)
        self.server.tokens[path] = self.headers.get("Authorization")
        return path

    def do_GET(self) -> None:
        name = self.note().removeprefix("/api/models/")
        if name in self.server.repositories:
            self.answer(200, {"id": name, "private": self.server.repositories[name], "tags": [], "siblings": []})
        else:
            self.answer(404, {"error": "there is none"})

    def do_POST(self) -> None:
        path, hub = self.note(), self.server
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if path == "/api/repos/create":
            sent = json.loads(body)
            name = f"{sent['organization'] or 'me'}/{sent['name']}"
            if name.startswith("others/"):
                self.answer(403, {"error": "you may not write there"})
            elif name in hub.repositories:
                self.answer(409, {"error": "there is one", "url": f"{hub.url}/{name}"})
            else:
                hub.repositories[name] = sent.get("visibility") == "private" or bool(sent.get("private"))
                self.answer(200, {"url": f"{hub.url}/{name}"})
        elif path == "/api/validate-yaml":
            self.answer(200, {"warnings": [], "errors": []})
        elif "/preupload/" in path:
            files = [{"path": file["path"]} for file in json.loads(body)["files"]]
            modes = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            self.answer(200, {"files": [file | modes for file in files]})
        elif "/commit/" in path:
            lines = [json.loads(line) for line in body.splitlines()]
            sent = [line["value"] for line in lines if line["key"] == "file"]
            hub.files = {file["path"]: base64.b64decode(file["content"]) for file in sent}
            name = path.removeprefix("/api/models/").split("/commit/")[0]
            url = f"{hub.url}/{name}/commit/{'0' * 40}"
            self.answer(200, {"success": True, "commitOid": "0" * 40, "commitUrl": url})
        else:
            self.answer(404, {"error": path})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    huggingface_hub.close_session()  # one that was made offline refuses to send
    yield server
    server.shutdown()
    thread.join()
    server.server_close()
    huggingface_hub.close_session()


@pytest.fixture(scope="module")
def run(tiny_bert: str, toy_sst2: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a ticket; do not write to it."""
    folder = tmp_path_factory.mktemp("push") / "run"
    finetune(
        FinetuneArguments(
            model=tiny_bert, task="sst2", data_dir=toy_sst2, output_dir=str(folder), batch_size=8, max_length=16,
            max_steps=2, search_steps=2, early_bird_interval=1, device="cpu",
        )
    )  # fmt: skip
    return folder


def test_a_pushed_model_is_what_the_run_trained(
    run: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(run), "me/small"]) == 0
    assert capsys.readouterr().out == f"uploaded to {hub.url}/me/small\n"
    assert hub.repositories == {"me/small": False}
    ours = {path: token for path, token in hub.tokens.items() if path.startswith(("/api/repos/", "/api/models/"))}
    assert len(ours) == 3 and set(ours.values()) == {"Bearer hf_secret"}
    expected = {path.name for path in (run / "model").iterdir()} | {"ticket.json", "ticket.png", "README.md"}
    assert set(hub.files) == expected
    for name, content in hub.files.items():
        (tmp_path / name).write_bytes(content)
    ids = torch.tensor([[1, 5, 9, 13]])
    pulled, trained = (AutoModelForSequenceClassification.from_pretrained(f) for f in (tmp_path, run / "model"))
    assert torch.equal(pulled(ids).logits, trained(ids).logits)
    assert hub.files["ticket.json"] == (run / "ticket.json").read_bytes()
    assert hub.files["ticket.png"] == (run / "ticket.png").read_bytes()
    card = hub.files["README.md"].decode()
    assert "](ticket.png)" in card
    assert re.search(r"\| the same after `ek.convert` \| \d+\.\d\d \|", card)


def test_the_recipe_on_the_card_does_the_run_again(run: Path, tiny_bert: str, toy_sst2: str, tmp_path: Path) -> None:
    card = str(model_card(RunDirectory(run), "me/small", None))
    assert str(run) not in card and toy_sst2 not in card and tiny_bert not in card
    (tmp_path / "recipe.yaml").write_text(card.split("```yaml\n")[1].split("```")[0])
    again = tmp_path / "again"
    settings = ("--config", str(tmp_path / "recipe.yaml"))
    assert main(["finetune", *settings, "--model", tiny_bert, "--data-dir", toy_sst2, "--output-dir", str(again)]) == 0
    for name in ("ticket.json", "model/model.safetensors"):
        assert (again / name).read_bytes() == (run / name).read_bytes()


def test_a_forward_is_timed_next_to_stock_and_the_model_stays(run: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(run / "model").eval()
    ids, encoder = torch.tensor([[1, 5, 9, 13]]), type(model.bert.encoder)
    before = model(ids).logits
    time = time_forward(model, torch.device("cpu"))
    assert torch.equal(model(ids).logits, before) and type(model.bert.encoder) is encoder
    assert time.stock_ms > 0 and time.loaded > 0 and time.converted > 0
    assert time.length == 32, "the longest that the model has positions for"
    assert time.machine["threads"] == torch.get_num_threads()


def test_pushing_again_replaces_and_private_is_private(run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(run), "small", "--private"]) == 0
    assert hub.repositories == {"me/small": True}
    assert main(["push", str(run), "small", "--private"]) == 0
    hub.repositories["me/small"] = False
    commits = [path for path in hub.requests if "/commit/" in path]
    assert len(commits) == 2
    assert main(["push", str(run), "small", "--private"]) == 2
    assert "there is such a repository, which is public" in capsys.readouterr().err
    assert [path for path in hub.requests if "/commit/" in path] == commits


def test_the_card_says_what_the_model_is(run: Path) -> None:
    card = model_card(RunDirectory(run), "me/small", None)
    metrics = json.loads((run / "metrics.json").read_text())
    _, head, text = str(card).split("---\n", 2)
    data = yaml.safe_load(head)
    assert data["library_name"] == "earlybert-kernels"
    assert data["pipeline_tag"] == "text-classification"
    assert set(data["tags"]) == {"bert", "earlybert", "pruning", "lottery-ticket"}
    assert "license" not in data, "which is not known"
    assert "base_model" not in data, "the base is a folder of this machine's"
    assert metrics["model"] not in str(card)
    [entry] = data["model-index"]
    [result] = entry["results"]
    assert entry["name"] == "small"
    assert result["dataset"]["name"] == "sst2"
    assert result["metrics"] == [{"type": "accuracy", "value": metrics["eval"]["accuracy"]}]
    heads, neurons = metrics["ticket"]["heads"], metrics["ticket"]["neurons"]
    for layer in range(3):
        assert f"| {layer} | {heads[layer]} of 4 | {neurons[layer]} of 48 |" in text
    assert f"{metrics['parameters']['trained']:,} of {metrics['parameters']['dense']:,} parameters" in text
    assert "import earlybert_kernels as ek" in text
    assert 'AutoModelForSequenceClassification.from_pretrained("me/small")' in text


def test_the_card_of_a_dense_model_of_the_hub(run: Path, tmp_path: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    hub = {"model": "google-bert/bert-base-uncased"}
    metrics |= {"method": "dense", "ticket": None, "arguments": metrics["arguments"] | hub} | hub
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "roberta"}))
    card = model_card(RunDirectory(tmp_path), "small", None)
    assert card.data.base_model == "google-bert/bert-base-uncased"
    assert card.data.tags == ["roberta", "earlybert"], "as the model says, whatever its base is called"
    assert "of which nothing was pruned" in card.text
    assert "earlybert_kernels" not in card.text and "## Widths" not in card.text and "## Speed" not in card.text
    assert "\nmodel: google-bert/bert-base-uncased\n" in card.text, "in the recipe"


def test_what_cannot_be_pushed_is_refused_before_anything_is_sent(
    run: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torn = Path(shutil.copytree(run, tmp_path / "torn"))
    (torn / "model" / "model.safetensors").write_bytes(b"")
    unfinished = Path(shutil.copytree(run, tmp_path / "unfinished"))
    (unfinished / "metrics.json").unlink()
    for folder, name, message in (
        (run, "a/b/c", "a/b/c: no name for a repository of the hub: Repo id must be"),
        (run, "-small", "-small"),
        (torn, "small", "is not as the run wrote it"),
        (unfinished, "small", "expected the folder of a finished run"),
    ):
        assert main(["push", str(folder), "--", name]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "absent"))
    assert main(["push", str(run), "small"]) == 2
    assert "log in with hf auth login, or set HF_TOKEN" in capsys.readouterr().err
    assert hub.requests == []


def test_what_the_hub_refuses_is_one_line(run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(run), "others/small"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"earlybert: error: others/small: not uploaded to {hub.url}: ")
    assert "403" in error and error.count("\n") == 1
