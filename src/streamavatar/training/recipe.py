"""What a training run is to do: sizes, data and schedule, as `streamavatar.recipes` fills them in."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from streamavatar.config import ModelConfig
from streamavatar.training.lora import LoraConfig
from streamavatar.training.methods.adversarial import AdversarialConfig
from streamavatar.training.methods.sid import SidConfig
from streamavatar.training.methods.teacher import TeachingConfig
from streamavatar.training.trainer import TrainConfig


@dataclass(frozen=True)
class Recipe:
    """Sizes, data and schedule of a small model trained on synthetic clips.

    Attributes:
        model: what is built.
        audio, decoder, teacher, student, sid, adversarial: optimiser settings of the stages that train; a recipe
            without `sid` or `adversarial` leaves these stages out, one without `audio`, `decoder` or `teacher` keeps
            the audio encoder, the codec or the transformer of `start`.
        teaching: settings of the teacher.
        causal: trains a block-causal copy of the teacher, which then makes the pairs in the teacher's place, chunk by
            chunk; the bidirectional teacher makes them if left out.
        distillation, refinement: settings of the SiD and the adversarial stage.
        latents: length of a clip, the reference included.
        window: length of a training sample, cut from a clip; long enough for the ring to be full and shifted.
        dialogues, dialogue_seconds, varied_speech: speech for the audio encoder, see `data.prepare.make_speech`.
        keep_features: how much an audio encoder that goes on is held to the features it has, see `AudioMethod`.
        codec_clips, clips, pairs: rendered clips for the codec, for the teacher, and teacher trajectories.
        solver_steps, guidance: of the trajectories.
        ships: the student that is exported: "student" (ODE start), "sid" or "adversarial"; the last of them if empty.
            Without a teacher it is that of `start`.
        data: folder of shards (`streamavatar data synth`) to train on; puppets, drawn when needed, if empty.
        lora: adapters in place of full training, see `training.lora`.
        start: model folder of the same sizes to go on from: its sound encoder, codec and transformer are where training
            begins, and its latents are kept; new weights if empty.
    """

    model: ModelConfig
    audio: TrainConfig | None
    decoder: TrainConfig | None
    teacher: TrainConfig | None
    student: TrainConfig
    sid: TrainConfig | None = None
    distillation: SidConfig = field(default_factory=SidConfig)
    adversarial: TrainConfig | None = None
    refinement: AdversarialConfig = field(default_factory=AdversarialConfig)
    teaching: TeachingConfig = field(default_factory=TeachingConfig)
    causal: TrainConfig | None = None
    lora: LoraConfig = field(default_factory=LoraConfig)
    latents: int = 22
    window: int = 13
    dialogues: int = 48
    dialogue_seconds: int = 60
    varied_speech: bool = False
    keep_features: float = 0.05
    codec_clips: int = 192
    clips: int = 1536
    pairs: int = 1024
    solver_steps: int = 16
    guidance: float = 1.0
    ships: Literal["", "student", "sid", "adversarial"] = ""
    data: str = ""
    start: str = ""
    seed: int = 0
    workers: int = 2

    @property
    def frames(self) -> int:
        return self.model.geometry.frames_of(self.latents)

    @property
    def source(self) -> Path | None:
        return Path(self.data) if self.data else None
