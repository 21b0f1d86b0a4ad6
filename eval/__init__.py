"""Evaluation of folders of pictures and reports of runs, from files alone."""
