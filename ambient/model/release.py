"""Which release this is; a test compares it with the package's metadata.

Floor 0. Reading the metadata takes a megabyte of imports, too much for a page of metrics.
"""

VERSION = "0.1.0"
