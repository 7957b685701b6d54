"""Work of a recipe's steps, by formula: the products and the attention of every pass that a step makes."""

from __future__ import annotations

from dataclasses import dataclass

from streamavatar.models.audio import latent_window
from streamavatar.models.text import LENGTH
from streamavatar.positions import Positions
from streamavatar.training.recipe import Recipe

ATTENTION_BACKWARD = 2.5
"""A flash kernel computes the scores again: five products backward for two forward."""


@dataclass(frozen=True)
class Work:
    """FLOP forward of a pass: products with weights, and attention."""

    products: float = 0.0
    attention: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.products + other.products, self.attention + other.attention)

    def __mul__(self, times: float) -> Work:
        return Work(times * self.products, times * self.attention)

    @property
    def forward(self) -> float:
        return self.products + self.attention

    def learnt(self, frozen: float = 0.0, *, again: bool) -> float:
        """Forward and backward.

        Args:
            frozen: share of the products whose weights are not trained: they pass gradients on and have none.
            again: whether blocks are computed again in the backward pass.
        """
        backward = (2 - frozen) * self.products + ATTENTION_BACKWARD * self.attention
        return (1 + again) * self.forward + backward


class Passes:
    """The passes that a recipe's steps are made of, one clip each."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.model = recipe, recipe.model
        self.t, self.g, self.audio = recipe.model.transformer, recipe.model.geometry, recipe.model.audio
        self.positions = Positions(self.g, recipe.model.context)
        self.chunks = (recipe.window - 1) // self.g.chunk_latents

    def own(self, latents: int, keys: int, *, prepared: bool = False) -> Work:
        """A pass of `latents` latents that see `keys` latents; with `prepared` conditions, without their keys."""
        t, d, per = self.t, self.t.dim, self.g.tokens_per_latent
        n, heard = latents * per, latents * self.audio.tokens
        products = n * (4 * d * d + 2 * 2 * d * d + 2 * d * t.ffn_dim)
        attention = n * keys * per + 2 * n * self.audio.tokens
        if not prepared:
            products += 2 * heard * self.audio.dim * 2 * d
        if t.text_dim:
            products += n * 2 * d * d + (0 if prepared else LENGTH * 2 * d * d)
            attention += n * LENGTH
        outside = n * t.patch**2 * (2 * t.latent_channels + t.reference_channels) * d
        outside += latents * (t.freq_dim * d + 7 * d * d)
        if t.text_dim and not prepared:
            outside += LENGTH * (t.text_dim * d + d * d)
        return Work(2 * (t.layers * products + outside), 4 * t.layers * attention * d)

    @property
    def whole(self) -> Work:
        """The clip at once, as teacher, scores and discriminator see it."""
        return self.own(self.recipe.window, self.recipe.window)

    @property
    def reference(self) -> Work:
        return self.own(1, 1)

    @property
    def sweep(self) -> Work:
        """Every chunk once, each through the cache."""
        out = Work()
        for chunk in range(1, self.chunks + 1):
            keys = sum(len(self.g.chunk_span(c)) for c in self.positions.window(chunk).chunks)
            out = out + self.own(self.g.chunk_latents, keys)
        return out

    @property
    def lanes(self) -> Work:
        """Audio features to tokens, both lanes."""
        a, later = self.audio, self.recipe.window - 1
        first = len(latent_window(0)) * a.feature_dim * a.hidden
        rest = later * len(latent_window(1, self.g.temporal_stride)) * a.feature_dim * a.hidden
        each = self.recipe.window * (a.hidden * a.hidden + a.hidden * a.tokens * a.dim)
        return Work(2 * 2 * (first + rest + each))

    @property
    def judged(self) -> Work:
        """The discriminator on a clip: the blocks up to the last tap, and the Q-Formers."""
        d, n = self.t.dim, self.recipe.window * self.g.tokens_per_latent
        queries = 1 if self.recipe.refinement.branches == "single" else self.recipe.window
        width = self.recipe.refinement.width
        former = n * 2 * d * d + queries * (2 * d * d + 8 * d * d)
        merge = queries * 3 * d * width + self.recipe.window * 2 * width * width
        head = Work(2 * n * d * self.t.latent_channels * self.t.patch**2)
        return self.whole + Work(2 * (3 * former + merge), 3 * 4 * n * d) + head * -1

    @property
    def frozen(self) -> float:
        """Share of a trained network's products whose weights are frozen, with LoRA."""
        lora, t = self.recipe.lora, self.t
        if not lora.rank:
            return 0.0
        d = t.dim
        sizes = {"self_attn": 4 * d * d, "talk_attn": 2 * d * d, "listen_attn": 2 * d * d, "ffn": 2 * d * t.ffn_dim}
        if t.text_dim:
            sizes["cross_attn"] = 2 * d * d
        return sum(sizes.get(name, 0) for name in lora.targets) / sum(sizes.values())

    # steps -----------------------------------------------------------------------------------------

    def rollout(self, *, gradient: bool, again: bool = False, forcing: bool = True) -> float:
        """A clip by the student: all passes of all chunks; those that exit keep their graphs."""
        context = self.model.context
        passes = len(self.model.schedule.sigmas) + (context.cache_mode == "clean") + (not forcing)
        plain = self.lanes.forward + self.reference.forward + passes * self.sweep.forward
        if not gradient:
            return plain
        return plain + self.sweep.learnt(self.frozen, again=again) - self.sweep.forward + 2 * self.lanes.products

    def turns(self, stage: str) -> list[tuple[float, float]]:
        """FLOP of a stage's kinds of steps, each with its share of the steps."""
        recipe, lanes = self.recipe, self.lanes.learnt(again=False)
        again = getattr(recipe, stage).recompute
        if stage == "teacher":
            work = self.sweep + self.reference if recipe.teaching.causal else self.whole
            return [(lanes + work.learnt(self.frozen, again=again), 1.0)]
        if stage == "student":
            return [(lanes + (self.sweep + self.reference).learnt(self.frozen, again=again), 1.0)]
        if stage == "sid":
            return self._sid(again)
        made, judged = self.rollout(gradient=False), self.judged.learnt(self.frozen, again=again)
        critic = made + self.lanes.forward + 4 * judged
        student = self.rollout(gradient=True, again=again) + self.lanes.forward + self.judged.forward + judged
        return [(critic, 0.5), (student, 0.5)]

    def _sid(self, again: bool) -> list[tuple[float, float]]:
        config, lanes, whole = self.recipe.distillation, self.lanes, self.whole
        forced = config.forcing == "student"
        critic = self.rollout(gradient=False, forcing=forced)
        critic += lanes.learnt(again=False) + whole.learnt(self.frozen, again=again)
        student = self.rollout(gradient=True, again=again, forcing=forced) + 3 * lanes.forward
        if config.objective == "dmd":
            student += 3 * whole.forward
        elif config.grad_mode == "replay":  # asks for the rollout's gradient alone
            student += 3 * whole.learnt(1.0, again=again)
        else:
            student += 2 * whole.learnt(1.0, again=again) + whole.learnt(self.frozen, again=again)
        if config.grad_mode == "replay":
            student += self.sweep.forward
        ratio = config.ratio / (config.ratio + 1)
        return [(critic, ratio), (student, 1 - ratio)]

    def solved(self) -> float:
        """A trajectory of the teacher."""
        recipe = self.recipe
        sigmas = self.model.schedule.sigmas
        levels = recipe.solver_steps + sum(s != 1.0 for s in sigmas)
        work = self.whole if recipe.causal is None else self.sweep
        return (1 if recipe.guidance == 1 else 2) * (levels * work.forward + self.lanes.forward)
