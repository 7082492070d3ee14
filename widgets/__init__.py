"""Views of a trace: in the browser, as figures, as documents, as reports. They import no torch. Names load lazily."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "core.selection": ["Selection"],
        "views.document_lens.view": ["DocumentLens"],
        "views.explorer": ["Explorer", "explore"],
        "views.live_pad.view": ["LivePad"],
        "views.reader_compare.view": ["ReaderCompare"],
        "views.receipts.view": ["Receipts"],
        "views.run_console.view": ["RunConsole"],
        "views.update_scope.view": ["UpdateScope"],
    },
)
