"""What caption makers share: sentences, swaps, templates, the framing of prompts and the guards on answers."""
