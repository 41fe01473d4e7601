"""The recipe of the bundled tiny model: sources, texts, corpus, tokenizer, training, export."""
