"""ReaderCompare: readers, or runs, side by side."""
