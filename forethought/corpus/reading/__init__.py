"""Files in, records out: which files a source consists of, and what each of them holds.

list_source ─► SourceFile ─► read_records ─► (document id, fields)        ReadingReport
source_files   listing       records         text, json_records, tables   what was left out
"""
