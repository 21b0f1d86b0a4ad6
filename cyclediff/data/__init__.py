"""Images and lists of edits from disk, and where files of real experiments come from."""
