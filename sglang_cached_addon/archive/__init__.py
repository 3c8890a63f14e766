"""A cache as a file that can be carried elsewhere, and what becomes of it there.

`record` is the format, a JSON object a line, with all that is known of each sample; `reading` makes
the records of a folder, and `writing` takes them into another one: the same calls have the same
answers there, byte for byte. `merging` does so with folders, and `dataset` makes what others read.
Knows no HTTP and no proxy.
"""
