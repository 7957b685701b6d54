"""Recipes: Python functions that return everything a training run needs to know."""

from collections.abc import Callable

from streamavatar.recipes.people import people
from streamavatar.recipes.puppets import micro, puppets
from streamavatar.recipes.wan22_5b import full
from streamavatar.training.recipe import Recipe

RECIPES: dict[str, Callable[[], Recipe]] = {"default": people, "puppets": puppets, "micro": micro, "wan22_5b": full}
