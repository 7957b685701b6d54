"""The engine: sessions that turn audio into frames as it comes. A session owns all its state."""

from streamavatar.engine.maker import Reference
from streamavatar.engine.pipeline import Pipeline
from streamavatar.engine.render import run_lanes
from streamavatar.engine.session import Output, Session
from streamavatar.engine.step import StepSession
from streamavatar.engine.telemetry import Telemetry

__all__ = ["Output", "Pipeline", "Reference", "Session", "StepSession", "Telemetry", "run_lanes"]
