"""Language models: load, save, make and take apart a Hugging Face causal LM, and read documents of any length with it.

`LanguageModel` sees such a model as body, final norm and unembedding, with or without a fast-weight block; `anatomy`
finds these parts, `context` keeps the KV cache of a past longer than the window, `encoding` deals with text. What is
known of a model beside its weights (tuned rule, gradient statistics) is plain data here. Nothing in this folder adapts
weights or knows what a reader, a trace or a training run is.
"""
