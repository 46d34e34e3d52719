"""Words to ids and back: tokenizer, chat template, incremental detokenizer, stop strings."""
