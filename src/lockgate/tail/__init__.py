"""Following files: identity, rotation, reading in rounds. Knows no component, no format and no destination.

patterns     which files are meant                     open         how they may be opened
discovery    where they are, and what changed          packed       gzip files by position
follow       one file, its content and its positions   queued       what the queues behind hold, and lost again
options      how to follow                             account      what happened: counts, losses, problems
known        contents that are not open                files        files that are
lives        which content a file holds                arrivals     files come
recognition  rotated files that nobody saw before      look         when to look at what
reading      a round of what is ready                  rereading    ranges that a queue lost
tailer       the blocking half: puts all of these together; one call looks, and reads a round
rounds       the asynchronous half: pace, delivery, acknowledgement, checkpoints
"""
