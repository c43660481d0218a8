"""The pages of a replay and of `openwavlm quality`: whatever users name things, it stands there as text."""

import re

import numpy as np

from openwavlm.evaluation.intervals import Interval
from openwavlm.evaluation.quality_rows import QualityRow
from openwavlm.evaluation.unit_figures import UnitFigures
from openwavlm.report.content import Example
from openwavlm.report.quality_page import chart_png, render_quality
from openwavlm.report.replay_page import render_replay

BAD = "<script>alert('x')</script>&"


def replayed(*, readable: bool = True) -> str:
    signal = np.sin(np.arange(16_000) / 9).astype(np.float32)
    mixture = {"with": "speech", "partner_place": 1, "partner_key": BAD, "partner_speaker": BAD, "start_s": 0.2, "length_s": 0.5}
    mixture |= {"partner_start_s": 0.0, "energy_ratio_db": 1.0, "overlap_snr_db": None}
    row = {"place": 0, "key": BAD, "speaker": BAD, "recording": BAD, "start_s": 0.0, "duration_s": 1.0, "readable": readable}
    row |= {"frames": 49, "masked_frames": 10, "mask_spans": [[3, 10]], "label_runs": [[4, 49]], "mixture": mixture}
    micro = {"slot": 0, "source": BAD, "epoch": 0, "stream": 0, "index": 2, "fingerprint": "f00", "samples": 16_000}
    micro |= {"masked_frames": 10, "layer_keep": [True, False], "rows": [row, row | {"place": 1, "mixture": None}]}
    launch = {"number": 0, "from_step": 0, "host": BAD, "versions": {"openwavlm": "0", "torch": "2"}, "changes": {BAD: [1, BAD]}}
    record = {"run": BAD, "step": 3, "launch": launch, "micro_batches": [micro]}
    record["recorded"] = {"audio_s": 2.0, "masked_frames": 20.0, "mixed_rows": 1.0, "loss": 2.5}
    example = Example(3, BAD, signal, signal, 3200, 8000, 1.0, np.nan, np.arange(49) < 10, np.full(49, 4))
    return render_replay(record, {(0, 0): example})


def judged() -> list[QualityRow]:
    values = (900, 50, 40, 8, 0.4, 0.3, 0.42, 0.02, 0.4, 0.38, 0.42, 0.002, (0.4,), 1.0, 44.0, 3.0, 3.0, 0.1, 0.3, 8)
    figures = UnitFigures(*values, pseudo=np.empty((1, 8)))
    rows = [(BAD, "labels", None), ("layer 1", "layer", 1), ("MFCC, K = 50", "mfcc", None)]
    return [QualityRow(name, kind, layer, "clean", figures, Interval(0.01, 0.0, 0.02, 0.014, 12)) for name, kind, layer in rows]


def check_page(page: str) -> None:
    assert "<script" not in page and "&lt;script&gt;" in page and "&amp;lt;" not in page
    assert not re.search(r"https?://|<link|@import|url\((?!#)", page)
    drawn = re.findall(r"<(?:svg|img)\b[^>]*>", page)
    assert drawn and all(re.search(r'aria-label="[^"]{10,}"', tag) for tag in drawn)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids)) and set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)


def test_a_replay_escapes_names_of_runs_speakers_and_utterances():
    page = replayed()
    check_page(page)
    assert page.count("data:audio/flac;base64,") == 2 and "4×49" in page and "0.06 – 0.26 s" in page
    assert "1 further row of this micro-batch" in page and "1 micro-batch, 2 rows" in page


def test_a_row_that_could_not_be_read_has_neither_picture_nor_audio():
    page = replayed(readable=False)
    assert "could not be read: silence, no loss, no partner" in page and "<img" not in page and "<audio" not in page


def test_a_page_of_quality_escapes_names_of_labels_and_its_sentences():
    page = render_quality({"sentences": [BAD]}, judged())
    check_page(page)
    assert page.count("<svg") == 2 and page.count("</tr>") == 4
    assert render_quality({"sentences": [BAD]}, judged()) == page
    assert chart_png(judged()).startswith(b"\x89PNG")
