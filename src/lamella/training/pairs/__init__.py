"""Images and labels in files: found, split by specimen, read, checked, drawn from."""
