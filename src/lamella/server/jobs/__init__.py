"""Jobs over HTTP: submitted, checked, shown, cancelled, retried, removed."""
