"""Text to tokens and back: tokenizer, chat template, incremental detokenizer, stop strings.

Knows files of a checkpoint and nothing of networks, engines or HTTP.
"""
