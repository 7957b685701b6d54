"""Video codecs: frames to latents and back. Stateless: decode(z, state) -> frames, state."""

from streamavatar.models.codec.light import DecoderState, LightCodec
from streamavatar.models.codec.wan import WanCodec

__all__ = ["DecoderState", "LightCodec", "WanCodec"]
