"""OpenWavLM: the complete open path from recordings to a WavLM-family model."""
