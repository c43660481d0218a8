"""The words of the report, for a reader who has not met them."""

GLOSSARY = [
    ("label", "Number of the cluster that a 20-ms frame of clean audio belongs to; what the model learns to predict."),
    ("masked cross-entropy", "How surprised the model is by the true labels of hidden frames, in nats a frame; lower is better."),
    ("label frequencies (unigram)", "A guess that knows only how common each label is in the training speech."),
    (
        "count table",
        "A guess from the nearest labels that are not hidden, left and right, and their distances, counted on training speech. "
        "It hears no audio; labels last several frames, so it is hard to beat at first.",
    ),
    ("nearest unmasked label", "A guess that repeats the label of the nearest frame that is not hidden."),
    ("phone", "A speech sound; its times are known for the probe speech."),
    (
        "MFCC, log-mel",
        "Classical descriptions of a frame's spectrum, computed without learning. “± 5” adds five frames on either side.",
    ),
    ("untrained encoder", "The same network before any training."),
    (
        "dev, test",
        "Two further sets of voices: layers are chosen on dev voices, and the figures shown are of test voices, read once.",
    ),
    ("interval", "Where 95 % of the figures lie when whole voices are drawn again at random."),
    ("PNMI", "Phone-normalised mutual information between units and phones, 0 to 1."),
    ("dB", "Ten times the decimal logarithm of a ratio of energies; 0 dB: both voices equally strong."),
]
