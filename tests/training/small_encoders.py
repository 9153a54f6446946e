"""Small random pre-trained encoders of each family, as folders of transformers and models of torchaudio."""

from __future__ import annotations

from pathlib import Path

import torch
import torchaudio
from ctranslate2.converters import TransformersConverter
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    HubertConfig,
    HubertModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
    WhisperForConditionalGeneration,
    WhisperModel,
)

WIDTH = 16
#: Tokens that Whisper has besides text.
SPECIAL = [f"<|{name}|>" for name in ("endoftext", "startoftranscript", "en", "translate", "transcribe")]
SPECIAL += [f"<|{name}|>" for name in ("startoflm", "startofprev", "nospeech", "notimestamps")]
#: Together 320 samples a frame, as all of these models have.
KERNELS, STRIDES = (10, 8, 8), (5, 8, 8)
SELF_SUPERVISED = {
    "wav2vec2": (Wav2Vec2Config, Wav2Vec2Model),
    "hubert": (HubertConfig, HubertModel),
    "wavlm": (WavLMConfig, WavLMModel),
}


def save_self_supervised(
    family: str, folder: Path, norm: str = "layer", **more_sizes: object
) -> PreTrainedModel:
    """Write a small model and its preprocessor; return the model."""
    torch.manual_seed(1)
    config, kind = SELF_SUPERVISED[family]
    sizes = {
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "conv_dim": (8, 8, 8),
        "conv_kernel": KERNELS,
        "conv_stride": STRIDES,
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 2,
        "feat_extract_norm": norm,
        "do_stable_layer_norm": norm == "layer",
        **more_sizes,
    }
    model = kind(config(**sizes)).eval()
    model.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=norm == "layer").save_pretrained(folder)
    return model


def save_whisper(
    folder: Path, vocab_size: int = 60, whole: bool = False, heads: int = 1, bins: int = 80
) -> PreTrainedModel:
    """Write a small Whisper, ``whole`` with what it needs to write text; return it."""
    torch.manual_seed(2)
    config = WhisperConfig(
        vocab_size=vocab_size,
        num_mel_bins=bins,
        d_model=64,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=heads,
        decoder_attention_heads=1,
        encoder_ffn_dim=40,
        decoder_ffn_dim=40,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
    )
    model = (WhisperForConditionalGeneration if whole else WhisperModel)(config).eval()
    model.save_pretrained(folder)
    return model


def save_ctranslate2_whisper(folder: Path) -> None:
    """Write a small Whisper as CTranslate2 has it. It wants to say "7" all the time, or else "c"."""
    ids = {token: number for number, token in enumerate(sorted(ByteLevel.alphabet()) + SPECIAL)}
    tokenizer = Tokenizer(BPE(vocab=ids, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    tokenizer.add_special_tokens(SPECIAL)
    source = folder / "transformers"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(source)
    timestamps = 1501
    model = save_whisper(source, vocab_size=len(ids) + timestamps, whole=True)
    embedding = model.model.decoder.embed_tokens.weight.data
    model.model.decoder.layer_norm.bias.data = 90 * embedding[ids["7"]] + 60 * embedding[ids["c"]]
    generation = model.generation_config
    generation.alignment_heads, generation.suppress_tokens = [[0, 0]], [ids["!"]]
    generation.begin_suppress_tokens, generation.lang_to_id = [], {}
    generation.no_timestamps_token_id = ids["<|notimestamps|>"]
    model.save_pretrained(source)
    converter = TransformersConverter(str(source), copy_files=["tokenizer.json"])
    converter.convert(str(folder / "ctranslate2"), quantization="float32")


def torchaudio_model(wavlm: bool = False) -> torchaudio.models.Wav2Vec2Model:
    """A small wav2vec 2.0 (HuBERT is the same class), or a WavLM."""
    torch.manual_seed(3)
    sizes = {
        "extractor_mode": "layer_norm",
        "extractor_conv_layer_config": [(8, k, s) for k, s in zip(KERNELS, STRIDES, strict=True)],
        "extractor_conv_bias": True,
        "encoder_embed_dim": WIDTH,
        "encoder_projection_dropout": 0.0,
        "encoder_pos_conv_kernel": 8,
        "encoder_pos_conv_groups": 2,
        "encoder_num_layers": 2,
        "encoder_num_heads": 2,
        "encoder_attention_dropout": 0.0,
        "encoder_ff_interm_features": 24,
        "encoder_ff_interm_dropout": 0.0,
        "encoder_dropout": 0.0,
        "encoder_layer_norm_first": True,
        "encoder_layer_drop": 0.0,
        "aux_num_out": None,
    }
    if wavlm:
        return torchaudio.models.wavlm_model(**sizes, encoder_num_buckets=32, encoder_max_distance=80).eval()
    return torchaudio.models.wav2vec2_model(**sizes).eval()
