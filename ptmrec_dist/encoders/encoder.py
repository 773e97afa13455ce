"""The encoder as the trainer sees it: images and texts in, one row per modality out, with any tuning method.

Legend: B batch, D width.
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptmrec_dist.config import EncoderConfig, MethodConfig, TowersConfig, method_entry
from ptmrec_dist.encoders.base import Backbone
from ptmrec_dist.encoders.frozen_prefix import FrozenPrefix
from ptmrec_dist.encoders.lengths import encode_by_length
from ptmrec_dist.encoders.recorded import RecordedTower
from ptmrec_dist.encoders.saved_tuning import read_tuned
from ptmrec_dist.encoders.sources.loading import load_backbone
from ptmrec_dist.encoders.tower import TokenStates, call_inner_modules, checkpoint_blocks
from ptmrec_dist.encoders.tuning.base import TuningMethod
from ptmrec_dist.errors import UserError


class Encoder(nn.Module):
    """A frozen backbone, with the modules that a tuning method has added.

    Args:
        backbone: The frozen encoder; tuning changes it in place.
        modalities: Towers to run, among `image` and `text`.
        precision: `bf16` runs the towers under autocast; features are float32 in any case.
        gradient_checkpointing: Recompute each block in the backward pass instead of keeping its activations.

    Raises:
        UserError: Gradient checkpointing of a tower whose blocks are not known.
    """

    def __init__(
        self,
        backbone: Backbone,
        modalities: tuple[str, ...],
        precision: str = "fp32",
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.model = backbone.model
        self.precision = precision
        self.towers = {modality: backbone.tower(modality) for modality in modalities}
        self.attached = nn.ModuleDict()
        self.sort_by_length = False  # to be set where no parameter is divided among ranks
        self.prefixes: dict[str, FrozenPrefix] = {}  # modality to blocks whose states are stored
        self.recorded: dict[str, RecordedTower] = {}  # modality to passes that are replayed
        if gradient_checkpointing:
            checkpoint_blocks(self.towers)
        for tuned in backbone.tuned:
            self.load_tuned(tuned)
            self.merge()
            self.requires_grad_(False)
        self.tune("none", None, torch.Generator())

    def train(self, mode: bool = True) -> "Encoder":
        """Set the mode, except for the frozen backbone: features must not depend on its dropout.

        Args:
            mode: As in `nn.Module.train`.

        Returns:
            The encoder.
        """
        super().train(mode)
        self.model.eval()
        return self

    @property
    def widths(self) -> dict[str, int]:
        """Width of each modality's features."""
        return {modality: tower.out_width for modality, tower in self.towers.items()}

    def tune(
        self,
        method: str,
        settings: MethodConfig | None,
        generator: torch.Generator,
        objectives: Sequence[str] = (),
    ) -> None:
        """Attach a tuning method to the towers; afterwards exactly the weights that it trains require gradients.

        Args:
            method: Name of the method.
            settings: Its settings; by default its defaults.
            generator: Source of the initial values.
            objectives: Objectives on pairs of image and text (`itc`, `itm`, `mlm`), whose heads are trained too.

        Raises:
            UserError: A method that a tower does not support, or that would tune nothing.
        """
        self._attach(method, settings or method_entry(method).config(), generator, objectives)
        if isinstance(settings, TowersConfig) and not self.num_tuned:
            raise UserError(
                f"{method}.towers: got {settings.towers!r}, but only the {' and '.join(self.towers)} tower is in use; "
                f"expected {' or '.join(self.towers)} or both"
            )

    def drop_frozen_towers(self) -> None:
        """Run only the towers in which something is tuned: the features of the others do not change."""
        for modality in list(self.towers):
            if not self._tuned_in(modality):
                del self.towers[modality]

    def record(self, device: torch.device) -> None:
        """From now on, where gradients are computed, record the passes of the tuned towers as CUDA graphs, and replay them.

        Args:
            device: The device of the encoder.

        Raises:
            UserError: The device is not a GPU.
        """
        if device.type != "cuda":
            raise UserError(
                f"cuda_graphs: got true, but the device is {device.type}; expected a GPU, or leave the option out"
            )
        for modality, tower in self.towers.items():
            if tuned := self._tuned_in(modality):
                self.recorded[modality] = RecordedTower(tower, tuned)

    def merge(self) -> None:
        """Merge what the attached method tuned into the towers' own weights, where the method can be merged."""
        self._method.merge(self.towers)

    def _tuned_in(self, modality: str) -> list[nn.Parameter]:
        """Parameters of a tower, and of what is attached to it, that require gradients."""
        beside = self.attached[modality].parameters() if modality in self.attached else ()
        every = (*self.towers[modality].parameters(), *beside)
        return [parameter for parameter in every if parameter.requires_grad]

    def _attach(
        self, method: str, settings: MethodConfig, generator: torch.Generator, objectives: Sequence[str]
    ) -> None:
        if method == "prompt" and self.attached:
            raise UserError("tuning.method: got prompt, but this encoder already has prompts; choose another method")
        self._method: TuningMethod[MethodConfig] = method_entry(method).load()(settings)
        chosen = self._method.chosen(self.towers)
        call_inner_modules(chosen)
        self.attached.update(self._method.attach(chosen, generator) if chosen else {})
        for parameter in itertools.chain.from_iterable(map(self.backbone.heads, objectives)):
            parameter.requires_grad_()
        tuned = {name: parameter.numel() for name, parameter in self.named_parameters() if parameter.requires_grad}
        self._tuned, self.num_tuned = frozenset(tuned), sum(tuned.values())
        self.description = {"method": method, "settings": json.dumps(asdict(settings))}
        if objectives:
            self.description["objectives"] = ",".join(objectives)

    @overload
    def encode(
        self, images: Tensor | None, texts: Tensor | None, *, items: Tensor | None = None
    ) -> dict[str, Tensor]: ...

    @overload
    def encode(
        self, images: Tensor | None, texts: Tensor | None, *, items: Tensor | None = None, tokens: Literal[True]
    ) -> dict[str, TokenStates]: ...

    def encode(
        self, images: Tensor | None, texts: Tensor | None, *, items: Tensor | None = None, tokens: bool = False
    ) -> dict[str, Tensor] | dict[str, TokenStates]:
        """Encode a batch of items.

        Features have length 1, unless the backbone is raw: CLIP was trained on cosines, so the length of its outputs carries
        no information, and on raw outputs (of length about 14) the recommenders' projections learn worse.

        States of tokens are those that the model itself pools: after its last block, and after its final norm where it applies
        that to the sequence. They keep their length. PMMRec takes those of CLIP's images from before the norm, as transformers
        returns them; here they are from behind it, so that images and texts of every model are alike, and pooling them gives
        the features.

        Args:
            images: uint8 [B, 3, H, W]; not needed without the image tower.
            texts: Token ids int64 [B, N]; not needed without the text tower.
            items: Item indices, int64 [B], by which stored states of frozen blocks are found; without them all blocks are run.
            tokens: Return the states of all tokens instead of features.

        Returns:
            Modality to features float32 [B, D], or to states float32 [B, N, W] with their mask, where N is the number of tokens
            of this batch and W the width of the tower. Vectors of prompts are not among them.

        Raises:
            UserError: `tokens`, and a tower without a sequence of tokens.
        """
        inputs = {"image": images, "text": texts}
        if tokens:
            return {modality: self._token_states(modality, inputs[modality], items) for modality in self.towers}
        return {modality: self._features(modality, inputs[modality], items) for modality in self.towers}

    def token_widths(self) -> dict[str, int]:
        """Measure the width of each modality's tokens by running every tower once.

        Returns:
            Modality to W.

        Raises:
            UserError: A tower without a sequence of tokens.
        """
        device = next(self.model.parameters()).device
        with torch.no_grad():
            states = {name: self._token_states(name, tower.example.to(device)) for name, tower in self.towers.items()}
        return {modality: found.states.shape[2] for modality, found in states.items()}

    def _features(self, modality: str, given: Tensor | None, items: Tensor | None) -> Tensor:
        inputs, count = self._present(modality, given)
        tower, prefix = self.towers[modality], self.prefixes.get(modality)

        def encode(rows_B: Tensor) -> Tensor:
            chosen = tower.trimmed(inputs[rows_B])
            if prefix is not None and items is not None and count:
                return prefix.encode(chosen, items[rows_B])
            return tower.encode(chosen)

        with self._autocast(inputs):
            if inputs.is_cuda and torch.is_grad_enabled() and prefix is None:
                # `tokenize` has cut common padding; to read lengths on the device here would wait for all that it has to do.
                encoded_BD = self.recorded.get(modality, tower).encode(inputs)
            elif self.sort_by_length and modality == "text":
                encoded_BD = encode_by_length(tower, inputs, encode)
            else:
                encoded_BD = encode(torch.arange(len(inputs), device=inputs.device))
        encoded_BD = encoded_BD.float()[:count]
        return encoded_BD if self.backbone.raw else F.normalize(encoded_BD, dim=1)

    def _token_states(self, modality: str, given: Tensor | None, items: Tensor | None = None) -> TokenStates:
        inputs, count = self._present(modality, given)
        tower, prefix = self.towers[modality], self.prefixes.get(modality)
        with self._autocast(inputs):
            if prefix is not None and items is not None and count:
                found = prefix.token_states(inputs, items)
            else:
                found = tower.token_states(inputs)
        if found is None:
            raise UserError(
                f"encoder: the {modality} tower ({self.towers[modality].kind}) has no sequence of tokens; expected a "
                "transformer: a ViT of open_clip or timm, a text encoder, VLMo or BEiT-3"
            )
        return TokenStates(found.states.float()[:count], found.mask[:count])

    def _present(self, modality: str, given: Tensor | None) -> tuple[Tensor, int]:
        """Inputs of a tower, and their number; a rank without items still runs the model: one row in, none out."""
        if given is None:
            raise ValueError(f"the encoder has a tower for {modality}, but the batch has no such input")
        return (given if len(given) else self.towers[modality].example.to(given.device)), len(given)

    def _autocast(self, inputs: Tensor) -> torch.autocast:
        return torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def tokenize(self, texts: list[str]) -> Tensor:
        """Convert texts to token ids, without columns that contain only padding.

        Args:
            texts: B texts.

        Returns:
            int64 [B, N].
        """
        tokens = self.backbone.tokenize(texts)
        return self.towers["text"].trimmed(tokens) if "text" in self.towers else tokens

    def tuned_state(self) -> dict[str, Tensor]:
        """Return exactly the tensors that tuning may have changed.

        Returns:
            Name to tensor; empty for the frozen encoder.
        """
        return {name: parameter.detach() for name, parameter in self.named_parameters() if name in self._tuned}

    def load_tuned(self, path: Path) -> None:
        """Load a file of tuned weights: attach the method that it names, and set its weights.

        Args:
            path: `encoder.safetensors`: `tuned_state` with `description` as its metadata.

        Raises:
            UserError: A file that cannot be read, or that belongs to another encoder.
        """
        saved = read_tuned(path)
        self._attach(saved.method, saved.settings, torch.Generator(), saved.objectives)
        one_of_two = len(self.towers) < len(self.backbone.modalities)  # it takes its own weights
        saved.refuse_misfit(self.tuned_state(), surplus_allowed=one_of_two)
        for name, value in self.tuned_state().items():
            value.copy_(saved.state[name])


def load_encoder(
    model: str | Path | EncoderConfig, weights: Path | None = None, modalities: tuple[str, ...] | None = None
) -> Encoder:
    """Load a pretrained or tuned encoder, ready to encode.

    Args:
        model: What `--encoder.model` takes: a name, or the folder of a model or of a run that tuned one; or all settings of
            an encoder.
        weights: `encoder.safetensors` of a stage 2 run whose encoder `model` was; by default none.
        modalities: Towers to run, among `image` and `text`; by default all that it has.

    Returns:
        The encoder in eval mode, without trainable weights; low-rank updates are merged into the weights.

    Raises:
        UserError: No such model; weights that cannot be read, or that belong to another encoder.
    """
    backbone = load_backbone(model if isinstance(model, EncoderConfig) else EncoderConfig(model=str(model)))
    encoder = Encoder(backbone, modalities or backbone.modalities)
    if weights is not None:
        encoder.load_tuned(weights)
        encoder.merge()
    return encoder.eval().requires_grad_(False)
