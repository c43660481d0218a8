"""What fastabx would read: item files whose tokens are the frames of their phones, features of the same names."""

import itertools
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from pathlib import Path

import numpy as np
import pytest
import torch

from openwavlm.audio.frames import num_frames
from openwavlm.audio.mfcc import mfcc_features
from openwavlm.evaluation import abx
from openwavlm.evaluation.features import MfccFeatures
from openwavlm.evaluation.phones.alignments import Segment, frame_phones
from openwavlm.evaluation.phones.matching import Matches
from openwavlm.evaluation.sets import ProbeSet, ProbeUtterance
from openwavlm.evaluation.shard_sets import Judged
from synthetic import speech_like

PHONES = ("AA", "B", "IY", "T")


def made() -> Judged:
    generator = np.random.default_rng(0)
    utterances, segments = [], []
    for number, seconds in enumerate((1.0, 2.0, 31.0)):
        borders = np.round(np.append(0, np.cumsum(generator.uniform(0.05, 0.2, 400))), 4)
        said = [Segment(a, b, PHONES[i % 4] if i % 9 else "sil") for i, (a, b) in enumerate(itertools.pairwise(borders))]
        said = [segment for segment in said if segment.start_s < seconds]
        audio = speech_like(seconds, seed=number)
        phones = frame_phones(said, len(mfcc_features(audio)), PHONES)
        utterances.append(ProbeUtterance(audio, phones, f"corpus/voice {number}", f"deep/u{number}"))
        segments.append(tuple(said))
    return Judged(
        ProbeSet(tuple(utterances), PHONES), (0, 1, 2), ("u0-a", "u1-b", "u2-c"), tuple(segments), Matches({}, [], [], [])
    )


def read(path: Path) -> list[dict[str, str]]:
    """An item file as fastabx reads it: separated by single spaces, the first line names the columns."""
    header, *lines = path.read_text().splitlines()
    return [dict(zip(header.split(" "), line.split(" "), strict=True)) for line in lines]


def frames(token: dict[str, str]) -> tuple[int, int]:
    """Frames [start, end) by the rule of fastabx's documentation (slicing), in decimals."""
    onset, offset = (Decimal(token[name]) * 50 - Decimal("0.5") for name in ("onset", "offset"))
    return int(onset.to_integral_value(ROUND_CEILING)), int(offset.to_integral_value(ROUND_FLOOR)) + 1


def test_tokens_of_phones_are_exactly_the_frames_whose_centre_lies_in_them(tmp_path: Path) -> None:
    judged = made()
    written = abx.write_items(judged, tmp_path)
    tokens = read(tmp_path / "phones.item")
    assert len(tokens) == written["phones"] > 100
    assert list(tokens[0]) == ["#file", "onset", "offset", "#phone", "prev-phone", "next-phone", "speaker"]
    for token in tokens:
        utterance = judged.utterances.utterances[judged.keys.index(token["#file"])]
        start, end = frames(token)
        assert 0 <= start < end <= utterance.frames
        inside = utterance.phones[start:end]
        assert (inside == PHONES.index(token["#phone"])).all()
        around = utterance.phones[[start - 1, min(end, utterance.frames - 1)]]
        assert around[0] == PHONES.index(token["prev-phone"])
        assert end == utterance.frames or around[1] == PHONES.index(token["next-phone"])
        assert token["speaker"] == utterance.speaker.replace(" ", "_")


def test_triphones_reach_over_their_neighbours_and_no_silence(tmp_path: Path) -> None:
    judged = made()
    abx.write_items(judged, tmp_path)
    tokens = read(tmp_path / "triphones.item")
    for token in tokens:
        utterance = judged.utterances.utterances[judged.keys.index(token["#file"])]
        start, end = frames(token)
        names = [PHONES[phone] for phone in dict.fromkeys(utterance.phones[start:end].tolist())]
        assert names == [token["prev-phone"], token["#phone"], token["next-phone"]]
    assert not {"sil"} & {token[name] for token in tokens for name in ("#phone", "prev-phone", "next-phone")}
    assert len(tokens) > 100


def test_a_pause_between_phones_ends_a_context_and_the_first_phone_starts_at_nothing() -> None:
    said = [
        Segment(0.0, 0.1, "a"),
        Segment(0.1, 0.2, "b"),
        Segment(0.2, 0.3, "c"),
        Segment(0.4, 0.5, "d"),
        Segment(0.5, 0.6, "e"),
    ]
    assert [token.phone for token in abx.tokens(said, 100, triphones=False)] == ["b"]
    (triphone,) = abx.tokens(said, 100, triphones=True)
    assert (triphone.onset, triphone.offset, triphone.frames) == (0, 4759, (0, 15))
    assert list(abx.tokens(said, 14, triphones=True)) == [], "a token beyond the features is left out"
    assert list(abx.tokens(said, 15, triphones=True)) == [triphone], "a token may end with the last frame"


def test_a_phone_between_two_frames_centres_is_no_token_of_its_own() -> None:
    # Centres lie at 12.5, 32.5, 52.5 … ms: none in the middle phone.
    said = [Segment(0.0, 0.035, "a"), Segment(0.035, 0.05, "b"), Segment(0.05, 0.1, "c")]
    assert list(abx.tokens(said, 100, triphones=False)) == []
    (triphone,) = abx.tokens(said, 100, triphones=True)
    assert triphone.frames == (0, 5) and triphone[2:] == ("b", "a", "c")


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("triphones", [False, True])
def test_a_silence_at_any_of_the_three_places_is_no_token(place: int, triphones: bool) -> None:
    names = ["a", "b", "c"]
    times = [(0.0, 0.1), (0.1, 0.2), (0.2, 0.3)]
    assert len(list(abx.tokens([Segment(*t, n) for t, n in zip(times, names, strict=True)], 20, triphones=triphones))) == 1
    names[place] = "SP"
    assert not list(abx.tokens([Segment(*t, n) for t, n in zip(times, names, strict=True)], 20, triphones=triphones))


@pytest.mark.parametrize(("gap", "tokens"), [(0, ["b", "c"]), (320, ["b", "c"]), (321, [])])
def test_phones_up_to_a_frame_apart_follow_each_other(gap: int, tokens: list[str]) -> None:
    # Four phones with one gap in the middle, in samples: it lies behind the second phone and before the third.
    starts = [0, 1600, 3200 + gap, 4800 + gap]
    said = [Segment(start / 16_000, (start + 1600) / 16_000, phone) for start, phone in zip(starts, "abcd", strict=True)]
    assert [token.phone for token in abx.tokens(said, 100, triphones=False)] == tokens


def test_long_recordings_are_extracted_in_equal_parts(tmp_path: Path) -> None:
    judged = made()
    abx.write_features(judged, MfccFeatures(), [0], tmp_path)
    waveform = judged.utterances.utterances[2].waveform()
    halves = [mfcc_features(waveform[: 320 * 773 + 400]), mfcc_features(waveform[320 * 774 :])]  # of 774 and 775 frames
    assert [len(half) for half in halves] == [774, 775]
    torch.testing.assert_close(torch.load(tmp_path / "layer-00" / "u2-c.pt"), torch.cat(halves))


def test_what_is_no_longer_than_30_s_is_one_part_and_beyond_as_few_equal_ones_as_there_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert abx._LONGEST == (30 * 16_000 - 400) // 320 + 1
    monkeypatch.setattr(abx, "_LONGEST", 10)
    given: list[np.ndarray] = []

    def extract(waveforms: np.ndarray, layers: object) -> list[torch.Tensor]:
        given.append(waveforms[0])
        return [torch.zeros(1, num_frames(waveforms.shape[1]), 2)]

    for frames, parts in ((1, [1]), (9, [9]), (10, [10]), (11, [5, 6]), (20, [10, 10]), (21, [7, 7, 7])):
        audio = np.arange(320 * frames + 80 + 100).astype(np.int16)  # 100 samples after the last frame
        utterance = ProbeUtterance(audio, np.zeros(frames, dtype=np.int64), "a")
        judged = Judged(ProbeSet((utterance,), ("x",)), (0,), ("k",), ((),), Matches({}, [], [], []))
        given.clear()
        abx.write_features(judged, extract, [0], tmp_path)  # type: ignore[arg-type]
        starts = np.cumsum([0, *parts[:-1]])
        wanted = [audio[320 * start : 320 * (start + count) + 80] for start, count in zip(starts, parts, strict=True)]
        assert len(given) == len(wanted) and all(map(np.array_equal, given, wanted))
        assert torch.load(tmp_path / "layer-00" / "k.pt").shape == (frames, 2)


def test_features_lie_under_the_names_of_the_item_file(tmp_path: Path) -> None:
    judged = made()
    assert abx.write_features(judged, MfccFeatures(), [0, 1], tmp_path, "mfcc-{}") == ["mfcc-0", "mfcc-1"]
    for utterance, key in zip(judged.utterances.utterances, judged.keys, strict=True):
        features = torch.load(tmp_path / "mfcc-0" / f"{key}.pt")
        assert features.shape == (utterance.frames, 39) and features.dtype == torch.float32 and features.isfinite().all()
    torch.testing.assert_close(
        torch.load(tmp_path / "mfcc-0" / "u1-b.pt"), mfcc_features(judged.utterances.utterances[1].waveform())
    )
    assert torch.load(tmp_path / "mfcc-1" / "u2-c.pt").shape == (1549, 429)
