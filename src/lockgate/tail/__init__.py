"""Following files: identity, rotation, reading in rounds. Knows no component, no format and no destination.

patterns    which files are meant          open        how they may be opened        discovery   where they are, and what changed
follow      one file and its positions     tailer      the blocking half: one call reads a round of all of them
packed      gzip files by position                         queued      what the queues behind hold, and lost again
rounds      the asynchronous half: pace, delivery, acknowledgement, checkpoints      retry       what users say of trying again
"""
