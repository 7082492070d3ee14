"""Views of a trace: in the browser, as figures, as documents, as reports. They import no torch. Names load lazily."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "document_lens": ["DocumentLens"],
        "explorer": ["Explorer", "explore"],
        "live_pad": ["LivePad"],
        "reader_compare": ["ReaderCompare"],
        "receipts": ["Receipts"],
        "run_console": ["RunConsole"],
        "selection": ["Selection"],
        "update_scope": ["UpdateScope"],
    },
)
