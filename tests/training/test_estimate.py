"""What a dry run says is what a step does: parameters, work and activations, held to counts of real steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from streamavatar.config import ModelConfig
from streamavatar.data.latents import LatentSet
from streamavatar.models.avatar import AvatarModel
from streamavatar.models.full import wan22_5b
from streamavatar.models.text import LENGTH
from streamavatar.ops.attention import using
from streamavatar.recipes import RECIPES
from streamavatar.training.estimate import (
    GPUS,
    META,
    activations_of,
    count,
    memory_of,
    recipe_cost,
    roles_of,
    waiting_of,
)
from streamavatar.training.lora import LoraConfig
from streamavatar.training.methods.adversarial import AdversarialConfig, AdversarialMethod
from streamavatar.training.methods.ode import OdeMethod
from streamavatar.training.methods.sid import SidConfig, SidMethod
from streamavatar.training.methods.teacher import TeacherMethod, TeachingConfig
from streamavatar.training.recipe import Recipe
from streamavatar.training.trainer import Method, TrainConfig
from streamavatar.training.work import Passes

ANY = TrainConfig(steps=10, batch=4)


@pytest.fixture
def recipe(small: ModelConfig) -> Recipe:
    """Wide and deep enough for the blocks to be most of the work, as they are at full size."""
    transformer = replace(small.transformer, dim=128, ffn_dim=512, heads=4, layers=3)
    model = replace(small, transformer=transformer)
    refinement = AdversarialConfig(width=64)
    return Recipe(model, ANY, ANY, ANY, ANY, sid=ANY, adversarial=ANY, refinement=refinement, latents=10, window=10)


def test_a_pass_of_the_full_size_is_38_tflop() -> None:
    """engine.md's table, 704x1280: 38.0 with a window of 10 latents, 40.5 with 13."""
    passes = Passes(Recipe(wan22_5b(704, 1280), None, None, ANY, ANY))
    assert passes.own(3, 10, prepared=True).forward == pytest.approx(38.0e12, rel=0.005)
    assert passes.own(3, 13, prepared=True).forward == pytest.approx(40.5e12, rel=0.005)


def method_of(recipe: Recipe, stage: str, clips: LatentSet) -> tuple[Method, tuple[int, ...]]:
    """A stage's method on the meta device, and the steps that stand for its turns."""
    with META:
        a, b, c = (AvatarModel(recipe.model).bfloat16() for _ in range(3))
        for model in (a, b, c):
            model.transformer.checkpoint_blocks = getattr(recipe, stage).recompute
            if width := recipe.model.transformer.text_dim:
                model.text = torch.empty(1, LENGTH, width)
        if stage == "teacher":
            return TeacherMethod(a, clips, recipe.window, recipe.teaching), (0,)
        if stage == "student":
            points = torch.stack([clips.latents] * 3, dim=1)
            return OdeMethod(a, clips, points, clips.latents), (0,)
        if stage == "sid":
            return SidMethod(a, b, c, clips, recipe.window, recipe.distillation), (0, 5)
        method = AdversarialMethod(a, b, clips, recipe.window, recipe.refinement)
        method.discriminator.bfloat16()
        return method, (0, 1)


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("teacher", {}),
        ("teacher", {"teaching": TeachingConfig(causal=True)}),
        ("student", {}),
        ("sid", {}),
        ("sid", {"distillation": SidConfig(grad_mode="replay")}),
        ("sid", {"distillation": SidConfig(objective="dmd")}),
        ("adversarial", {}),
        ("adversarial", {"refinement": AdversarialConfig(width=64, branches="single")}),
    ],
    ids=str,
)
def test_work_and_activations_are_what_steps_take(
    recipe: Recipe, stage: str, changes: dict[str, object], make_clips: Callable[..., LatentSet]
) -> None:
    assert_as_counted(replace(recipe, **changes), stage, make_clips)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("teacher", {}),
        ("student", {}),
        ("sid", {"distillation": SidConfig(grad_mode="replay")}),
        ("sid", {"distillation": SidConfig(grad_mode="exit_step")}),
        ("adversarial", {}),
    ],
    ids=str,
)
def test_recomputed_blocks_at_full_width(
    stage: str, changes: dict[str, object], make_clips: Callable[..., LatentSet]
) -> None:
    """Three blocks of the 5B; small models would say little, since what is outside of the blocks is most of them."""
    recipe, model = RECIPES["wan22_5b"](), wan22_5b()
    model = replace(model, transformer=replace(model.transformer, layers=3))
    assert getattr(recipe, stage).recompute
    assert_as_counted(replace(recipe, model=model, window=10, **changes), stage, make_clips)  # type: ignore[arg-type]


def assert_as_counted(recipe: Recipe, stage: str, make_clips: Callable[..., LatentSet]) -> None:
    """Work to 5 %, memory to 35 %."""
    clips = make_clips(recipe.model, 1, recipe.window).to(META)
    method, steps = method_of(recipe, stage, clips)
    with using("flash"):
        counted = [count(method, step) for step in steps]
    for step, (flop, _) in zip(counted, Passes(recipe).turns(stage), strict=True):
        assert flop == pytest.approx(step.flop, rel=0.05), (flop, step.flop)
    memory = activations_of(recipe, stage) + waiting_of(recipe, stage, roles_of(recipe, stage))
    assert memory == pytest.approx(max(step.activations for step in counted), rel=0.35)


def test_parameters(recipe: Recipe) -> None:
    model = AvatarModel(recipe.model)
    expected = sum(
        p.numel() for part in (model.transformer, model.audio.talk, model.audio.listen) for p in part.parameters()
    )
    student, fake, real = roles_of(recipe, "sid")
    assert student.parameters == student.trained == fake.trained == real.parameters == expected
    assert real.trained == 0
    deeper = replace(recipe, model=replace(recipe.model, transformer=replace(recipe.model.transformer, layers=6)))
    six = AvatarModel(deeper.model)
    assert roles_of(deeper, "teacher")[0].parameters == sum(
        p.numel() for part in (six.transformer, six.audio.talk, six.audio.listen) for p in part.parameters()
    )


def test_sharding_divides_states_and_lora_shrinks_them(recipe: Recipe) -> None:
    roles = roles_of(recipe, "sid")
    one, eight = (memory_of(recipe, "sid", roles, 100.0, gpus) for gpus in (1, 8))
    for part in ("weights", "gradients", "optimizer", "average"):
        assert getattr(eight, part) == -(-getattr(one, part) // 8)
    assert eight.activations == one.activations
    assert one.optimizer == 8 * sum(role.trained for role in roles)
    lora = replace(recipe, lora=LoraConfig(rank=4))
    student, fake, base = thin = roles_of(lora, "sid")
    assert student.trained == fake.trained < 0.5 * roles[0].trained
    assert base.trained == 0
    assert memory_of(lora, "sid", thin, 100.0, 1).optimizer < 0.5 * one.optimizer
    assert memory_of(lora, "sid", thin, 100.0, 8).weights > 2 * base.parameters  # the base lies on every GPU


def test_more_gpus_than_clips_do_not_help(recipe: Recipe) -> None:
    four, many = (recipe_cost(recipe, ["teacher"], gpus)[0] for gpus in (4, 64))
    assert four.seconds == many.seconds
    assert recipe_cost(recipe, ["teacher"], 1)[0].seconds == pytest.approx(4 * four.seconds)
    assert [cost.stage for cost in recipe_cost(replace(recipe, sid=None))] == [
        "teacher",
        "pairs",
        "student",
        "adversarial",
    ]
    slow = recipe_cost(recipe, ["teacher"], gpu=GPUS["a100"], utilisation=0.2)[0]
    fast = recipe_cost(recipe, ["teacher"], gpu=GPUS["h100"], utilisation=0.4)[0]
    assert slow.seconds == pytest.approx(fast.seconds * 2 * 989 / 312)
