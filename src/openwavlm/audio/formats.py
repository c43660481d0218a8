"""File name extensions of audio."""

_PCM = ".wav .wave .rf64 .bwf .w64 .aiff .aif .aifc .caf .au .snd .sph .nist .wv1 .wv2 .flac"
_COMPRESSED = (
    ".mp3 .mp2 .mpa .mpga .ogg .oga .ogx .ogv .opus .spx .aac .adts .m4a .m4b .m4r .m4v .mp4 .mov .3gp .3g2 .webm .weba .mka .mkv "
    ".wma .wmv .asf .amr .awb .wv .tta .ape"
)
_UNREADABLE = ".ra .rm .shn .mpc .ac3 .eac3 .dts .dsf .vox .gsm .voc .g722 .qcp .tak .ofr .ofs .dff .aax .aa .avi .flv"
EXTENSIONS = frozenset(f"{_PCM} {_COMPRESSED}".split())
# Audio without a decoder here; listed with the others, so that it is reported as skipped.
UNREADABLE_EXTENSIONS = frozenset(_UNREADABLE.split())
