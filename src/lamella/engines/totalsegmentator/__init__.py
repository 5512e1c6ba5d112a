"""TotalSegmentator's tasks on CT and MR, run by the package itself in an environment of its own."""
