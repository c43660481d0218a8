"""Every config file composes and builds; every misspelt key, wrong type and missing value is answered in a sentence."""

import re
from copy import deepcopy
from dataclasses import fields

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

from openwavlm.cli.help import _attributes
from openwavlm.runs.compose import composed as compose_within
from openwavlm.runs.compose import conf_dir, plain, quoted
from openwavlm.training.build import make_model
from openwavlm.training.config import RunConfig, default_values, settings_of
from openwavlm.training.key_names import _KEY_OF, _SYNONYMS, nearest_key
from openwavlm.training.run_files import flatten

PLACES = ["name=test", "data.sources.speech.shards=shards", "data.sources.speech.labels=labels"]
GROUPS = {path.name: sorted(file.stem for file in path.glob("*.yaml")) for path in conf_dir().iterdir() if path.is_dir()}
_SETTINGS = [group for group in settings_of() if group in GROUPS]
OPTIONS = [(group, option) for group in _SETTINGS for option in GROUPS[group]]
# As conf/model says, without the head.
MILLIONS = {"base": 94.4, "base_plus": 94.4, "large": 315.5, "nano": 1.7, "nano_mel": 1.5, "small": 23.6}


def composed(*overrides: str) -> dict:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return plain(compose("train", [*PLACES, *overrides]))


@pytest.fixture(scope="module")
def config() -> dict:
    return composed()


def changed(config: dict, key: str, value: object) -> dict:
    """A copy of the config with one (dotted) key set."""
    changed = deepcopy(config)
    *path, last = key.split(".")
    place = changed
    for name in path:
        place = place[name]
    place[last] = value
    return changed


def test_all_config_files_are_known_to_these_tests():
    assert set(GROUPS) == {"model", "masking", "mixing", "data", "batch", "optim", "loss", "experiment", "prep", "task", "preset"}
    assert set(GROUPS["experiment"]) == {*RECIPES, *READINGS} and len(RECIPES) == 7
    assert len(GROUPS["model"]) == 6 and len(OPTIONS) == 24


# experiment → millions of parameters with a head of 500 classes (of 504 in the references: 94.71 and 316.63 there), updates, audio an
# update, micro-batches, peak rate, share of the frames in spans, mixing, whether it is to reproduce a paper.
RECIPES = {
    "wavlm_nano": (1.71, 500, 32.0, 2, 1e-3, 0.65, (0.2, 0.0), False),
    "wavlm_small": (23.86, 200_000, 1400.0, 8, 5e-4, 0.80, (0.2, 0.0), False),
    "hubert_base_it1": (94.71, 250_000, 2800.0, 32, 5e-4, 0.65, (0.0, 0.0), True),
    "wavlm_base": (94.71, 400_000, 2800.0, 32, 5e-4, 0.80, (0.2, 0.0), True),
    "wavlm_base_l9": (94.71, 400_000, 2800.0, 16, 5e-4, 0.80, (0.2, 0.0), False),
    "wavlm_base_plus": (94.71, 1_000_000, 2800.0, 32, 5e-4, 0.80, (0.2, 0.1), True),
    "wavlm_large": (316.62, 700_000, 7200.0, 128, 1.5e-3, 0.80, (0.2, 0.1), True),
}


@pytest.mark.parametrize("experiment", RECIPES)
def test_every_experiment_composes_and_builds_with_its_numbers(experiment):
    millions, updates, seconds, slots, lr, prob, mixing, of_a_paper = RECIPES[experiment]
    values = composed(f"experiment={experiment}", "data.noise=noise")
    parts = RunConfig.of(values)
    with torch.device("meta"):
        model = make_model(parts, 500)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)
    batch, optim, masking = parts.batch, parts.optim, parts.masking
    assert (optim.updates, batch.seconds, batch.slots, optim.lr) == (updates, seconds, slots, lr)
    assert (masking.prob, (parts.mixing.prob, parts.mixing.noise_prob)) == (prob, mixing)
    reproduces = (batch.policy == "fairseq_crop", masking.same_count, optim.decay == "all")
    assert reproduces == ((True,) * 3 if of_a_paper else (False,) * 3)
    if of_a_paper:
        assert parts.model.attention_dropout == (0.0 if experiment == "wavlm_large" else 0.1)
        assert (optim.betas, optim.eps, optim.weight_decay, optim.warmup_updates) == ((0.9, 0.98), 1e-6, 0.01, 32_000)
        assert optim.clip_norm == (1.0 if experiment == "wavlm_large" else 10.0)
        assert (batch.max_seconds * 16_000, batch.min_seconds * 16_000) == (250_000, 32_000)


# Seconds an update, micro-batches, peak rate, share of the frames in spans.
READINGS = {
    "wavlm_base_350s_per_gpu": (11_200.0, 128, 5e-4, 0.80),
    "wavlm_large_720s_per_gpu": (46_080.0, 768, 1.5e-3, 0.80),
    "wavlm_large_lr5e-4": (7_200.0, 128, 5e-4, 0.80),
    "hubert_base_it1_mask80": (2_800.0, 32, 5e-4, 0.80),
}


@pytest.mark.parametrize(("reading", "expected"), READINGS.items())
def test_other_readings_of_the_papers_are_experiments_of_their_own(reading, expected):
    parts = RunConfig.of(composed(f"experiment={reading}", "data.noise=noise"))
    assert (parts.batch.seconds, parts.batch.slots, parts.optim.lr, parts.masking.prob) == expected


@pytest.mark.parametrize("option", GROUPS["model"])
def test_every_model_builds_with_its_size(option):
    with torch.device("meta"):
        model = make_model(RunConfig.of(composed(f"model={option}")), 500)
    millions = sum(p.numel() for p in model.wavlm.parameters()) / 1e6
    assert millions == pytest.approx(MILLIONS[option], abs=0.05)


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_file_of_a_group_states_only_what_differs_from_the_defaults_of_its_class(group, option):
    stated = yaml.safe_load((conf_dir() / group / f"{option}.yaml").read_text()) or {}
    defaults = default_values()[group]
    for key, value in flatten({key: value for key, value in stated.items() if key != "defaults"}).items():
        if group != "data":  # whose source has a name and folders of its own
            known = flatten(defaults)
            assert key in known and known[key] != value, key


def test_every_key_of_every_class_can_be_overridden_without_a_plus_sign(config):
    for name, settings in settings_of().items():
        node = config
        for part in name.split("."):
            node = node[part]
        inner = {place.rpartition(".")[2] for place in settings_of() if place.startswith(f"{name}.")}
        assert set(node) == {field.name for field in fields(settings)} | inner


def test_every_setting_has_a_comment_for_the_help():
    for settings in (RunConfig, *settings_of().values()):
        assert set(_attributes(settings)) == {field.name for field in fields(settings)}, settings


# --- misspelt keys ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("optim.xyz", None),
        ("optim.learning_rate", "optim.lr"),
        ("optim.max_steps", "optim.updates"),
        ("epochs", "optim.updates"),
        ("lr", "optim.lr"),
        ("batch_size", "batch.seconds"),
        ("trainer.gpus", "trainer.devices"),
        ("trainer.max_skip_rates", "data.max_skip_rate"),
        ("fold_stress", "probes.fold_stress"),
        ("optim.warmup_update", "optim.warmup_updates"),
        ("model.layer", "model.layers"),
        ("mixing.probs", "mixing.prob"),
        ("loader.worker", "loader.workers"),
        ("trainer.device", "trainer.accelerator"),
        ("callbacks.checkpoint_evry", "callbacks.checkpoint_every"),
        ("sede", "seed"),
        ("stop_afer", "stop_after"),
        ("optimm", "optim"),
    ],
)
def test_a_misspelt_key_is_refused_with_the_one_that_comes_nearest(config, key, near):
    with pytest.raises(ValueError, match=f"^{key} is not a known key; ") as refusal:
        RunConfig.of(changed(config, key, 1))
    assert str(refusal.value).endswith(f"did you mean {near}?") if near else "known keys: " in str(refusal.value)


def test_a_misspelt_key_of_a_source_is_refused():
    with pytest.raises(ValueError, match=r"data\.sources\.speech\.shard is not a known key; a source takes shards, labels"):
        RunConfig.of(composed("+data.sources.speech.shard=x"))


def test_a_misspelt_key_in_an_experiment_file_is_refused(tmp_path):
    # Hydra itself merges such a file without a word.
    (tmp_path / "experiment").mkdir()
    file = tmp_path / "experiment" / "mine.yaml"
    search = f"hydra.searchpath=[file://{tmp_path}]"
    for content, key, near in (
        ({"optim": {"warmup_updatse": 3}}, "optim.warmup_updatse", "optim.warmup_updates"),
        ({"masking": {"lenght": 3}}, "masking.lenght", "masking.length"),
        ({"stop_aftr": 3}, "stop_aftr", "stop_after"),
    ):
        file.write_text("# @package _global_\n" + yaml.safe_dump(content))
        with pytest.raises(ValueError, match=f"^{key} is not a known key; did you mean {near}"):
            RunConfig.of(composed(search, "experiment=mine"))
    file.write_text("# @package _global_\n" + yaml.safe_dump({"optim": {"warmup_updates": 3}}))
    assert RunConfig.of(composed(search, "experiment=mine")).optim.warmup_updates == 3


def test_a_misspelt_key_is_told_before_a_missing_folder():
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        values = plain(compose("train", ["name=test", "+optim.lrr=1"]))
    with pytest.raises(ValueError, match=r"^optim\.lrr"):
        RunConfig.of(values)


def test_every_synonym_means_a_key_that_exists(config):
    known = {*flatten(config), "optim.updates"}
    assert set(_SYNONYMS) <= known and len(_KEY_OF) == sum(len(words.split()) for words in _SYNONYMS.values()) > 150
    for word, key in _KEY_OF.items():
        assert nearest_key(f"trainer.{word}", known) == nearest_key(word, known) == key


# --- wrong values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("optim.lr", "abc", "optim.lr must be a number, but is 'abc'"),
        ("optim.lr", True, "optim.lr must be a number, but is True"),
        ("optim.lr", None, "optim.lr must be a number, but is None"),
        ("optim.updates", 1.5, "optim.updates must be a whole number, but is 1.5"),
        ("optim.updates", None, "optim needs updates"),
        ("optim.betas", "abc", "optim.betas must be a list of 2 values, each a number, but is 'abc'"),
        ("optim.betas", [0.9], "optim.betas must be a list of 2 values"),
        ("optim.decay", "none", "optim.decay must be one of all, matrices, but is 'none'"),
        ("model.conv_dims", [1, "x"], "model.conv_dims must be a list of values, each a whole number"),
        ("model.pre_norm", 1, "model.pre_norm must be true or false, but is 1"),
        ("model.head.label_init", "zero", "model.head.label_init must be one of uniform, normal"),
        ("trainer.threads", "two", "trainer.threads must be a whole number or null, but is 'two'"),
        ("trainer.threads", 0, "trainer.threads must be at least 1"),
        ("trainer.devices", 0, "trainer.devices and trainer.threads must be at least 1"),
        ("trainer.accelerator", "gpus", "trainer.accelerator must be one of auto, cpu, gpu"),
        ("data.sources", [], "data.sources must be a group of names"),
        ("data.sources", {}, "data.sources is empty: name at least one"),
        ("data.noise", 3, "data.noise must be a text or null, but is 3"),
        ("batch.policy", "crop", "batch.policy must be one of split, fairseq_crop, pad"),
        ("batch.seconds", 100.0, "batch.seconds must be a multiple of batch.micro_seconds"),
        ("precision", "bf16", "precision must be one of 32-true, bf16-mixed, 16-mixed, but is 'bf16'"),
        ("seed", "abc", "seed must be a whole number, but is 'abc'"),
        ("stop_after", "end", "stop_after must be a whole number or null"),
        ("allow_change", "optim.lr", "allow_change must be a list of values, each a text, but is 'optim.lr'"),
        ("masking.prob", -1, "masking.prob (summed length of the spans over the frames) must lie in 0 … masking.length"),
        ("loss.feature_penalty", -1, "loss.feature_penalty must be a number that is not negative"),
        ("loader.prefetch", 0, "loader.prefetch ≥ 1"),
        ("logger.every_s", 0, "logger.every_s and logger.tensorboard_every must be positive"),
        ("callbacks.keep_last", 0, "keep_last must be at least 1, but is 0"),
    ],
)
def test_a_wrong_value_is_refused_by_name(config, key, value, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)) as refusal:
        RunConfig.of(changed(config, key, value))
    assert "\n" not in str(refusal.value)


def test_numbers_that_are_right_are_taken(config):
    parts = RunConfig.of(changed(changed(changed(config, "optim.lr", 1), "trainer.threads", None), "name", 17))
    assert parts.optim.lr == 1 and parts.trainer.threads is None
    assert RunConfig.of(changed(config, "optim.betas", (0.5, 0.6))).optim.betas == (0.5, 0.6)


def test_a_mandatory_value_that_is_missing_is_named():
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("train", [])
    with pytest.raises(ValueError, match=r"the config needs a value for name, as in name=\.\.\."):
        plain(config)


@pytest.mark.parametrize("key", ["optim", "data", "seed", "precision", "allow_change"])
def test_a_part_that_was_removed_is_named(config, key):
    values = {name: value for name, value in config.items() if name != key}
    with pytest.raises(ValueError, match=f"the config lacks {key}"):
        RunConfig.of(values)
    with pytest.raises(ValueError, match=f"{key} must be .*, but is None"):
        RunConfig.of(values | {key: None})


def test_a_group_may_not_be_removed_and_a_source_may():
    with pytest.raises(ValueError, match="the config lacks loss: leave out the override that deletes it"):
        compose_within("train", [*PLACES, "~loss"])
    other = ["+data.sources.other={shards: a, labels: b}", "~data.sources.speech"]
    assert list(compose_within("train", ["name=test", *other]).data.sources) == ["other"]


def test_a_config_names_no_python_class(config):
    assert not [key for key in flatten(config) if "_target_" in key]
    with pytest.raises(ValueError, match=r"optim\._target_ is not a known key"):
        RunConfig.of(changed(config, "optim._target_", "torch.optim.AdamW"))


def test_a_head_that_was_removed_is_named(config):
    with pytest.raises(ValueError, match=r"model\.head must be a group of keys, but is None: take the override away"):
        RunConfig.of(changed(config, "model", {key: value for key, value in config["model"].items() if key != "head"}))


def test_sources_are_checked(config):
    def sources(**other: object) -> dict:
        speech = {"shards": "a", "labels": "b", "weight": 1.0, "share": None}
        return config | {"data": config["data"] | {"sources": {"speech": speech, "other": speech | other}}}

    assert len(RunConfig.of(sources()).data.sources) == 2
    for change, sentence in (
        (
            {"shards": None},
            r"data\.sources\.other\.shards must name a folder, .* remove the source with ~data\.sources\.other",
        ),
        ({"labels": ""}, r"data\.sources\.other\.labels must name a folder"),
        ({"weight": 0}, r"data\.sources\.other\.weight must be a positive number, but is 0"),
        ({"weight": "much"}, r"data\.sources\.other\.weight must be a positive number, but is 'much'"),
        ({"share": -0.5}, r"data\.sources\.other\.share must be a positive number, but is -0\.5"),
        ({"share": 0.5}, r"data\.sources must all have a share or none .* but only other has one"),
    ):
        with pytest.raises(ValueError, match=sentence):
            RunConfig.of(sources(**change))


@pytest.mark.parametrize(
    "path",
    ["/home/jürgen's = a,b [x] #1/run", "/a: {b} (c)/d", "/back\\slash\\'/x\\", '/"two"/x', "null", "/plain/runs/x-0.1"],
)
def test_a_quoted_path_is_an_overrides_value_whatever_its_characters(path):
    key, value = "data.sources.speech.shards", quoted(path)
    data = composed(f"{key}={value}", f"+data.validation.dev={{shards: {value}, labels: {value}}}")["data"]
    assert data["sources"]["speech"]["shards"] == path
    assert data["validation"]["dev"] == {"shards": path, "labels": path}
    (override,) = OverridesParser.create().parse_overrides([f"hydra.run.dir={value}"])
    assert override.value() == path
