"""An encoder written as docs/extending.md says goes the whole way: features, both stages with prompts, a registered model."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ptmrec_dist import cli, load_model
from ptmrec_dist.config.tuning import method_config
from ptmrec_dist.encoders.base import Backbone, weights_digest
from ptmrec_dist.encoders.encoder import Encoder
from ptmrec_dist.encoders.sources import loading
from ptmrec_dist.encoders.tower import Layout, TokenStates, Tower
from ptmrec_dist.errors import UserError
from tests.conftest import Project

WIDTH, LENGTH = 16, 12


class Letters(nn.Module):
    """The mean of the tokens after two transformer blocks over the letters of a text."""

    def __init__(self) -> None:
        super().__init__()
        self.letters = nn.Embedding(128, WIDTH)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 2, 32, dropout=0.0, batch_first=True, norm_first=True) for _ in range(2)
        )

    def forward(self, letters_BN: Tensor) -> Tensor:
        tokens_BND = self.letters(letters_BN)
        for block in self.blocks:
            tokens_BND = block(tokens_BND)
        return cast(Tensor, tokens_BND.mean(dim=1))


class LetterTower:
    """Its tower."""

    kind = "Letters"
    out_width = WIDTH
    layout: Layout | None = Layout(WIDTH, ("dropout1", "dropout2"))

    def __init__(self, model: Letters) -> None:
        self.model, self.blocks = model, cast(Sequence[nn.Module], model.blocks)
        self.example = torch.ones(1, LENGTH, dtype=torch.int64)

    def encode(self, inputs: Tensor) -> Tensor:
        features_BD: Tensor = self.model(inputs)
        return features_BD

    def token_states(self, inputs: Tensor) -> TokenStates | None:
        return None

    def trimmed(self, inputs: Tensor) -> Tensor:
        return inputs

    def parameters(self) -> Sequence[nn.Parameter]:
        return list(self.model.parameters())


@dataclass(frozen=True)
class LetterBackbone(Backbone):
    """The source."""

    config_file: ClassVar[str] = "letters.json"
    image_size: ClassVar[int] = 0  # type: ignore[misc]
    modalities: ClassVar[tuple[str, ...]] = ("text",)  # type: ignore[misc]

    def load_image(self, image: Image.Image) -> Tensor:
        raise NotImplementedError

    def tokenized(self, texts: list[str]) -> tuple[Tensor, int]:
        codes = [[ord(letter) % 128 for letter in text[:LENGTH].ljust(LENGTH)] for text in texts]
        return torch.tensor(codes).reshape(-1, LENGTH), sum(len(text) > LENGTH for text in texts)

    def tower(self, modality: str) -> Tower:
        return LetterTower(cast(Letters, self.model))

    def save(self, folder: Path) -> None:
        save_file(self.model.state_dict(), folder / "letters.safetensors")
        (folder / self.config_file).write_text("{}")


def load_letters(folder: Path) -> LetterBackbone:
    model = Letters()
    model.load_state_dict(load_file(folder / "letters.safetensors"))
    return LetterBackbone(model.eval().requires_grad_(False), weights_digest(model, "letters"))


@pytest.mark.parametrize("method", ["prompt", "adapter", "last_n", "full"])
def test_what_a_method_tunes_counts_in_torchs_own_blocks_with_gradients_and_without(method: str) -> None:
    """Without gradients of their own weights these take a fused path, which calls no module inside them."""
    torch.manual_seed(0)
    model = Letters().eval().requires_grad_(False)
    encoder = Encoder(LetterBackbone(model, weights_digest(model, "letters")), ("text",))
    letters = encoder.tokenize(["a green chair", "a red lamp"])
    before = encoder.encode(None, letters)["text"]
    encoder.tune(method, method_config(method), torch.Generator().manual_seed(0))
    if method != "prompt":
        torch.testing.assert_close(encoder.encode(None, letters)["text"], before, rtol=0, atol=1e-6)
    tuned = [weight for weight in encoder.parameters() if weight.requires_grad]
    for weight in tuned:
        weight.data.normal_()
    after = encoder.encode(None, letters)["text"]
    after.sum().backward()
    with torch.no_grad():
        again = encoder.encode(None, letters)["text"]
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(again, after.detach(), rtol=0, atol=1e-5)
    assert all(weight.grad is not None for weight in tuned)


def test_lora_refuses_attention_that_it_does_not_reach_and_changes_nothing() -> None:
    model = Letters().eval().requires_grad_(False)
    encoder = Encoder(LetterBackbone(model, weights_digest(model, "letters")), ("text",))
    with pytest.raises(UserError, match=r"the text tower \(Letters\) has torch's MultiheadAttention at self_attn"):
        encoder.tune("lora", method_config("lora", rank=2), torch.Generator())
    assert weights_digest(model, "letters") == encoder.backbone.fingerprint


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The encoder's folder; what the branch in `loading.py` does is done here from outside."""
    others: Any = loading._load_folder_or_name

    def load(settings: Any) -> Backbone:
        folder = Path(settings.model)
        return load_letters(folder) if (folder / LetterBackbone.config_file).is_file() else others(settings)

    monkeypatch.setattr(loading, "_load_folder_or_name", load)
    torch.manual_seed(0)
    model = Letters()
    loading.save_backbone(LetterBackbone(model, weights_digest(model, "letters")), tmp_path / "letters")
    return tmp_path / "letters"


def test_an_encoder_from_outside_goes_from_features_to_new_items_of_a_registered_model(
    published: Path, tiny_project: Project, empty_sqlite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(empty_sqlite, tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    shards, train = ["--shards", str(tiny_project.shards)], ["--tracking.enabled", "false", "--epochs", "2"]
    prompts = ["--tuning.method", "prompt", "--prompt.length", "2"]
    for words in (
        ["features", *shards, "--encoder.model", str(published), "--out", str(tmp_path / "features")],
        ["stage1", *shards, "--features", str(tmp_path / "features"), *train, "--out", str(tmp_path / "stage1")],
        ["stage2", "--stage1", str(tmp_path / "stage1"), *train, *prompts, "--out", str(tmp_path / "b")],
    ):
        assert cli.main([*words, "--device", "cpu"]) == 0
    assert cli.main(["register", "--run", str(tmp_path / "b"), "--name", "letters", "--alias", "champion"]) == 0
    tuned = json.loads((tmp_path / "b" / "run.json").read_text())["parameters"]["encoder"]
    assert tuned == 2 * 2 * WIDTH
    assert all(prompts.any() for prompts in load_file(tmp_path / "b" / "encoder.safetensors").values())
    request = pd.DataFrame({"user_id": ["u1", "u1"], "text": ["a green chair", "a red lamp"]})
    answer = load_model("models:/letters@champion").predict(request)
    assert len(set(answer["score"])) == 2
