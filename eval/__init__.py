"""Evaluation of folders of pictures, and reports of runs. It reads files only, and depends on no method."""
