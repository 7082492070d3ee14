"""A workbench for watching a language model learn while it reads. The public names load lazily."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "audit": ["certify"],
        "certificate": ["Certificate", "Check", "add_certificates", "certificates"],
        "controls": ["more_context", "wrong_document"],
        "corpus": ["Document", "corpus_hash", "huggingface_corpus", "stdlib_corpus", "text_corpus", "wikitext_corpus"],
        "fast_weights": ["FastWeightBlock", "FastWeightState", "UpdateRule"],
        "fast_weights.reference": ["load_published_parameters"],
        "from_scratch": ["new_model"],
        "generation": ["Generation", "generate"],
        "language_model": ["LanguageModel"],
        "loading": ["attach_fast_weights", "available_devices", "load_model"],
        "matrices": ["fast_weight", "relative_drift"],
        "operated": ["operate"],
        "optimizers": ["DynamicEvaluationRMS", "DynamicEvaluationSGD", "GradientStatistics"],
        "readers": [
            "DynamicEvaluationReader",
            "FastWeightReader",
            "NeuralCacheReader",
            "Reader",
            "Scores",
            "StaticReader",
            "gradient_statistics",
        ],
        "receipt_totals": ["receipt_summary"],
        "receipts": ["add_receipts", "receipt", "receipts_of"],
        "recording": ["Recorder"],
        "replaying": ["replay"],
        "scoring": ["make_readers", "score"],
        "spectra": ["directions", "effective_rank", "principal_angles", "promotes", "spectrum"],
        "surgery": ["Surgery"],
        "trace": ["open_trace", "save_trace"],
        "training": ["TrainingConfig", "train"],
    },
)
