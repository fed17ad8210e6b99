"""A causal language model folder with random weights and a chat template."""

from pathlib import Path

from tests.captioner import make_tokenizer

_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} {{ message['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
WORDS = tuple(f"word{number}" for number in range(40))


def make_language_model(folder: Path, *, seed: int = 0, context: int = 128, has_template: bool = True) -> Path:
    """Write a folder as `save_pretrained` does."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer([" ".join(("system", "user", "assistant", *WORDS))])
    if has_template:
        tokenizer.chat_template = _TEMPLATE
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=context,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        # Wide enough for words to make a difference untrained.
        initializer_range=0.3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = LlamaForCausalLM(config)
    # What a model's makers like must not reach answers.
    network.generation_config.do_sample = True
    network.generation_config.temperature = 5.0
    network.generation_config.repetition_penalty = 3.0
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
