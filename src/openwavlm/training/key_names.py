"""Suggestions for misspelt config keys."""

import difflib
from collections.abc import Iterable

# Key → its names in fairseq, Lightning, Transformers, ESPnet and s3prl.
_SYNONYMS = {
    "optim.lr": "learning_rate lr peak_lr max_lr base_lr",
    "optim.updates": "max_steps steps num_steps total_steps train_steps max_update max_updates num_train_steps epochs max_epochs "
    "max_epoch num_epochs num_train_epochs n_epochs iterations",
    "optim.warmup_updates": "warmup warmup_steps num_warmup_steps warmup_ratio",
    "optim.clip_norm": "clip grad_clip clip_grad gradient_clip_val max_grad_norm clip_gradients",
    "optim.betas": "adam_betas beta beta1 beta2",
    "optim.eps": "adam_eps epsilon adam_epsilon",
    "optim.ema": "ema_decay",
    "optim.schedule": "scheduler lr_scheduler lr_scheduler_type",
    "batch.seconds": "batch_size train_batch_size global_batch_size gradient_accumulation_steps accumulate_grad_batches update_freq",
    "batch.micro_seconds": "max_tokens micro_batch_size per_device_train_batch_size max_batch_seconds batch_bins",
    "batch.max_seconds": "max_sample_size max_length max_duration crop max_audio_length",
    "batch.min_seconds": "min_sample_size min_length min_duration",
    "trainer.devices": "gpus gpu num_gpus n_gpus ngpu num_processes nproc nproc_per_node world_size num_devices",
    "trainer.accelerator": "device",
    "trainer.threads": "num_threads cpu_threads",
    "loader.workers": "num_workers dataloader_num_workers n_workers",
    "loader.prefetch": "prefetch_factor",
    "masking.prob": "mask_prob mask_time_prob mask_ratio",
    "masking.length": "mask_length mask_time_length mask_span",
    "mixing.prob": "mixing_prob mix_prob",
    "mixing.noise_prob": "mixing_noise_prob",
    "model.layers": "encoder_layers num_layers num_hidden_layers n_layers depth",
    "model.dim": "encoder_embed_dim hidden_size embed_dim d_model width hidden_dim",
    "model.ffn_dim": "encoder_ffn_embed_dim intermediate_size",
    "model.heads": "encoder_attention_heads num_attention_heads num_heads n_heads",
    "model.layer_drop": "encoder_layerdrop layerdrop",
    "model.recompute": "checkpoint_activations gradient_checkpointing activation_checkpointing",
    "model.compile_layers": "compile torch_compile",
    "model.normalise_waveform": "normalize do_normalize",
    "model.head.logit_temperature": "logit_temp temperature",
    "callbacks.checkpoint_every": "save_every save_steps save_interval save_interval_updates checkpoint_interval every_n_train_steps",
    "callbacks.validate_every": "val_every eval_steps eval_every validate_interval validate_interval_updates val_check_interval",
    "callbacks.keep_last": "save_total_limit keep_last_updates keep_interval_updates save_top_k",
    "logger.every_s": "log_every log_interval logging_steps log_every_n_steps",
    "data.validation_share": "val_share valid_share dev_share val_split validation_split",
    "precision": "fp16 bf16 amp dtype mixed_precision",
    "init_from": "pretrained checkpoint model_path restore_file finetune_from_model init",
    "branch_from": "resume_from resume_from_checkpoint ckpt_path",
    "name": "run_name exp_name experiment_name output_dir run",
}
_KEY_OF = {word: key for key, words in _SYNONYMS.items() for word in words.split()}


def nearest_key(key: str, known: Iterable[str]) -> str | None:
    """The key of `known` that a misspelt key, such as `optim.learning_rate`, probably means; None if nothing is near.

    It is the one with this name in other programs; else the one with the same last part; else the one of nearest spelling, in the same
    group if there is one.
    """
    known = list(known)
    group, _, leaf = key.rpartition(".")
    if _KEY_OF.get(leaf) in known:
        return _KEY_OF[leaf]
    same = [name for name in known if name.rpartition(".")[2] == leaf]
    if len(same) == 1:
        return same[0]
    siblings = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == group}
    if found := difflib.get_close_matches(leaf, siblings, 1):
        return siblings[found[0]]
    leaves = {name.rpartition(".")[2]: name for name in reversed(known)}  # without the groups, which make any two keys look alike
    return next((leaves[found] for found in difflib.get_close_matches(leaf, leaves, 1, 0.75)), None)
