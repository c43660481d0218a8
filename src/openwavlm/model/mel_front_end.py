"""Front end without learnt filters, the control for `conv_extractor`: normalised log-mels through one linear map."""

from torch import Tensor, nn

from openwavlm.audio.spectra import NUM_BANDS, normalised_log_mel


class MelFrontEnd(nn.Module):
    """Waveform to one vector every 20 ms, on the same frames as the convolutions."""

    def __init__(self, dim: int):
        super().__init__()
        self.map = nn.Linear(NUM_BANDS, dim)

    def forward(self, waveforms: Tensor, num_samples: Tensor | None = None) -> Tensor:
        """Maps (batch, samples) to (batch, dim, frames); bands are normalised over the row's valid frames (batch,) `num_samples`."""
        return self.map(normalised_log_mel(waveforms, num_samples).to(self.map.weight.dtype)).transpose(1, 2)
