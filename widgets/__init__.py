"""Views of a trace: figures, documents, reports. They import no torch."""
