"""The one front end: 16 kHz samples to 80-bin log-mel frames, 100 frames a second.

Training, export and runtime all compute features here, so they cannot disagree. The specification travels in
every model's metadata, and a model made with another one is refused.

Axis legend: S samples, F feature frames (10 ms each), 80 mel bins.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import kaldi_native_fbank as knf
import numpy as np
import numpy.typing as npt

from onebest.errors import ModelError

FloatArray = npt.NDArray[np.float32]

SAMPLE_RATE = 16000
NUM_BINS = 80
FRAME_SHIFT_SAMPLES = 160
#: What the front end gives for digital silence: log of the smallest positive float32.
SILENCE = -15.942385


@dataclass(frozen=True)
class FrontEndSpec:
    """All that decides a feature's value, with the values of every onebest model (Kaldi's log-mel, no CMVN).

    ``high_freq_hz`` counts from the Nyquist frequency when it is negative, as in Kaldi. Samples are in
    [-1, 1], not scaled to 16-bit integers.
    """

    sample_rate: int = SAMPLE_RATE
    num_bins: int = NUM_BINS
    frame_length_ms: float = 25.0
    frame_shift_ms: float = 10.0
    window: str = "povey"
    preemphasis: float = 0.97
    remove_dc_offset: bool = True
    round_to_power_of_two: bool = True
    snip_edges: bool = False
    dither: float = 0.0
    low_freq_hz: float = 20.0
    high_freq_hz: float = -400.0
    use_energy: bool = False

    def to_options(self) -> knf.FbankOptions:
        """Return the options for kaldi-native-fbank."""
        options = knf.FbankOptions()
        frame, mel = options.frame_opts, options.mel_opts
        frame.samp_freq = self.sample_rate
        frame.frame_length_ms = self.frame_length_ms
        frame.frame_shift_ms = self.frame_shift_ms
        frame.window_type = self.window
        frame.preemph_coeff = self.preemphasis
        frame.remove_dc_offset = self.remove_dc_offset
        frame.round_to_power_of_two = self.round_to_power_of_two
        frame.snip_edges = self.snip_edges
        frame.dither = self.dither
        mel.num_bins = self.num_bins
        mel.low_freq = self.low_freq_hz
        mel.high_freq = self.high_freq_hz
        options.use_energy = self.use_energy
        return options

    def to_dict(self) -> dict[str, Any]:
        """Return the specification as it stands in a model card."""
        return asdict(self)


SPEC = FrontEndSpec()


def check_spec(spec: object, where: str) -> None:
    """Refuse a model whose front end is not ours.

    Raises:
        ModelError: a key is missing, unknown or has another value; the message lists them. What is no
            dictionary has none.
    """
    ours, found = SPEC.to_dict(), spec if isinstance(spec, dict) else {}
    wrong = sorted(key for key in ours.keys() | found.keys() if ours.get(key) != found.get(key))
    if wrong:
        pairs = ", ".join(f"{key}: {found.get(key)!r} instead of {ours.get(key)!r}" for key in wrong)
        raise ModelError(
            f"{where} was made with another front end ({pairs}). "
            "Export it again with this version of onebest."
        )


class FrontEnd:
    """Features of one utterance, computed as its samples arrive.

    The frames do not depend on how the samples are cut: a frame is given out once, when all its samples are
    in.
    """

    def __init__(self) -> None:
        self._fbank = knf.OnlineFbank(SPEC.to_options())
        self._taken = 0

    def accept(self, samples: FloatArray) -> FloatArray:
        """Take float32 samples [S] in [-1, 1] and return the frames [F, 80] that became complete."""
        if samples.size:
            self._fbank.accept_waveform(SAMPLE_RATE, samples.data)  # crosses over faster than the array
        return self._take()

    def finish(self) -> FloatArray:
        """Say that no samples follow and return the frames [F, 80] at the very end."""
        self._fbank.input_finished()
        return self._take()

    def _take(self) -> FloatArray:
        ready = self._fbank.num_frames_ready
        if ready == self._taken:
            return np.zeros((0, NUM_BINS), np.float32)
        frames = np.concatenate([self._fbank.get_frame(index) for index in range(self._taken, ready)])
        self._fbank.pop(ready - self._taken)
        self._taken = ready
        return frames.reshape(-1, NUM_BINS)


def compute_features(samples: FloatArray) -> FloatArray:
    """Return the frames [F, 80] of a whole utterance of samples [S]."""
    if not samples.size:
        return np.zeros((0, NUM_BINS), np.float32)
    front_end = FrontEnd()
    return np.concatenate([front_end.accept(samples), front_end.finish()])
