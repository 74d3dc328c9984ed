"""Small models whose weights all matter, and what their loss comes to."""

import torch


SIZES = {"hidden_size": 32, "num_attention_heads": 2, "vocab_size": 61, "max_position_embeddings": 24}
SIZES |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def disturbed(kind, config):
    """Biases and norms too, which a fresh model begins with zeros and ones."""
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def output_and_gradients(model, batch, **options):
    model.zero_grad()
    output = model(**batch, **options)
    output.loss.backward()
    return output, {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
