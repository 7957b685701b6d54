"""Video codecs: frames to latents and back. Stateless: decode(z, state) -> frames, state."""

from streamavatar.models.codec.light import DecoderState, LightCodec

__all__ = ["DecoderState", "LightCodec"]
