"""Recorders: what is kept of the attention calls of a routed model."""

from entropy_attn.recorders.base import Recorder
from entropy_attn.recorders.entropy import EntropyRecorder
from entropy_attn.recorders.maps import MapRecorder
from entropy_attn.recorders.response import ResponseRecorder

__all__ = ["EntropyRecorder", "MapRecorder", "Recorder", "ResponseRecorder"]
