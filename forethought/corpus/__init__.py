"""The corpus: files in, documents out.

    SourceSection ─► open_source ─► cut_windows ─► Corpus.take ─► Document
                     readers         windows        mixture

``base`` holds what a run needs to make a small base model of its own from the same text. Import
from the modules; importing this package loads neither datasets nor transformers.
"""
