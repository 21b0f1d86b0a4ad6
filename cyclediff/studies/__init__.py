"""What a run can be, one file each: what it needs, what it makes of its items, and how that is scored."""
