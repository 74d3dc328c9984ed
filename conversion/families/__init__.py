"""The families, by transformers' name of their model type."""

from triune.conversion.families import bert, clip, dinov2, gpt2, llama, modernbert, seq2seq, vit, vit_mae
from triune.conversion.family import Family


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        *(bert.BERT, bert.ROBERTA, bert.DISTILBERT, modernbert.MODERNBERT),
        *(gpt2.GPT2, llama.LLAMA, llama.MISTRAL, llama.QWEN2, llama.QWEN3),
        *(vit.VIT, vit.DEIT, dinov2.DINOV2, dinov2.DINOV2_WITH_REGISTERS, vit_mae.VIT_MAE, clip.CLIP, clip.SIGLIP),
        *(seq2seq.T5, seq2seq.BART, seq2seq.MARIAN),
    )
}
