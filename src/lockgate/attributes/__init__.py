"""Attributes as users speak of them: values and their text, the actions that change them, the properties that select records.

What the processors `resource`, `attributes`, `filter`, `source` and `groupbyattrs` share. Works on parsed protobuf messages; knows no
pipeline, opens nothing.
"""
