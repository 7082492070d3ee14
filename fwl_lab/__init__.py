"""A workbench for watching a language model learn while it reads. The public names load lazily."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "corpus": ["Document", "corpus_hash", "stdlib_corpus", "text_corpus", "wikitext_corpus", "huggingface_corpus"],
    },
)
