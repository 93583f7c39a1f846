"""The corpus: files in, documents out.

    SourceSection ─► open_source ─► cut_windows ─► Corpus.take ─► Document
                     reading         windows        mixture

Import from the modules; importing this package loads neither datasets nor transformers.
"""
